"""What Prometheus reads: gauges in its text format, version 0.0.4, which every process answers alike.

https://prometheus.io/docs/instrumenting/exposition_formats
"""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter

from flask import current_app

from stores import Database, calls, jobs, refusals, spool, updates
from stores.records import Backlog
from work.lanes import get_lanes

HOUR = 3600.0
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Gauge = tuple[str, str, float]  # its name, its label, and its value


def metrics(db: Database) -> str:
    """Every gauge. Raises StoreError."""
    lines = []
    for name, gauges in groupby(sorted((*_kept(db), *_by_handler(db), *_refused(db))), key=itemgetter(0)):
        lines += [f"# TYPE receiver_{name} gauge", *(f"receiver_{name}{label} {value}" for _, label, value in gauges)]
    return "\n".join(lines) + "\n"


def _kept(db: Database) -> Iterator[Gauge]:
    """The stale calls are not active. The spool is this machine's."""
    yield "calls_active", "", calls.count_active(db, after=db.now() - current_app.config["STALE_AFTER"])
    yield "calls_kept", "", calls.count(db)
    yield "updates_kept", "", updates.count(db)
    yield "updates_spooled", "", spool.waiting(db)
    if (latest := updates.latest(db)) is not None:
        yield "seconds_since_update", "", db.now() - latest


def _by_handler(db: Database) -> Iterator[Gauge]:
    """Of each handler that is on, or has something to do."""
    backlogs = {lane.name: Backlog(lane.name, 0, 0, None, None) for lane in get_lanes()}
    backlogs |= {backlog.handler: backlog for backlog in jobs.backlog(db)}
    for name, backlog in backlogs.items():
        label = _label("handler", name)
        yield "jobs_pending", label, backlog.pending
        yield "jobs_failed", label, backlog.failed
        yield "oldest_pending_seconds", label, db.now() - backlog.oldest if backlog.oldest else 0


def _refused(db: Database) -> Iterator[Gauge]:
    """In this hour of the clock and the one before, as that is how they are counted."""
    times = dict.fromkeys(refusals.REASONS, 0) | {row.reason: row.times for row in refusals.since(db, db.now() - HOUR)}
    for reason, number in times.items():
        yield "refusals_last_hour", _label("reason", reason), number


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
    return f'{{{name}="{escaped}"}}'
