"""What Prometheus reads: gauges in its text format, version 0.0.4, which every process answers alike.

https://prometheus.io/docs/instrumenting/exposition_formats
"""

import json

from stores import Database, calls, jobs, refusals, spool, updates
from stores.records import Backlog
from work.lanes import get_lanes


def metrics(db: Database) -> str:
    """Every gauge. Stale calls are not active, the spool is this machine's, and refusals are those of this hour of the
    clock and the one before, as that is how they are counted. Raises StoreError."""
    now, latest = db.now(), updates.latest(db)
    backlogs = {_label("handler", lane.name): Backlog(lane.name, 0, 0, None, None) for lane in get_lanes()}
    backlogs |= {_label("handler", backlog.handler): backlog for backlog in jobs.backlog(db)}
    refused = dict.fromkeys(refusals.REASONS, 0)
    refused |= {reason: times for reason, times, _ in refusals.since(db, now - 3600)}
    gauges: dict[str, dict[str, float]] = {
        "calls_active": {"": calls.count_active(db, after=calls.stale_at(db))},
        "calls_kept": {"": calls.count(db)},
        "updates_kept": {"": updates.count(db)},
        "updates_spooled": {"": spool.waiting(db)},
        "seconds_since_update": {} if latest is None else {"": now - latest},
        "jobs_pending": {label: backlog.pending for label, backlog in backlogs.items()},
        "jobs_failed": {label: backlog.failed for label, backlog in backlogs.items()},
        "oldest_pending_seconds": {label: now - (backlog.oldest or now) for label, backlog in backlogs.items()},
        "refusals_last_hour": {_label("reason", reason): times for reason, times in refused.items()},
    }
    lines = []
    for name, values in gauges.items():
        lines.append(f"# TYPE receiver_{name} gauge\n")
        lines += [f"receiver_{name}{label} {value}\n" for label, value in values.items()]
    return "".join(lines)


def _label(name: str, value: str) -> str:
    return f"{{{name}={json.dumps(value, ensure_ascii=False)}}}"  # a label is escaped as a string of JSON is
