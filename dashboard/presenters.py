"""What the dashboard shows of calls, updates and handlers."""

import json
from typing import Any

from schemas.times import iso
from stores.records import CallRecord as Call
from stores.records import Job, StoredUpdate
from work.lanes import get_lane, get_lanes

# What files, wallboards and spreadsheets get of a call.
SHOWN = ("id", "status", "type", "line", "line_name", "customer", "received_at", "started_at", "ended_at", "seconds")
SHOWN += ("error", "end_reason")


def call_state(call: Call) -> dict[str, Any]:
    """One call in `/calls.json`, or a line of a file: SHOWN, times in ISO 8601."""
    found = {name: getattr(call, name) for name in SHOWN}
    return {name: iso(value) if name.endswith("_at") else value for name, value in found.items()}


def kept_update(kept: StoredUpdate) -> dict[str, Any]:
    """One update as received, and what became of it in each handler that it was given to or that is on."""
    jobs = {job.handler: job for job in kept.jobs}
    names = [*(kept.handlers or ()), *jobs, *(lane.name for lane in get_lanes())]
    return {
        "status": kept.status,
        "received_at": kept.received_at,
        "times": kept.times,
        "last_received_at": kept.last_received_at,
        "message": json.dumps(json.loads(kept.message)["message"], indent=2, ensure_ascii=False),
        "handlers": [(name, jobs.get(name) or _job_of(kept, name)) for name in dict.fromkeys(names)],
    }


def _job_of(kept: StoredUpdate, handler: str) -> Job | None:
    """A job that was done at once, of which no row is kept; None where the handler was given nothing to do."""
    if kept.handlers is None or handler not in kept.handlers:
        return None
    return Job(handler, "done", None, attempts=1, done_at=kept.received_at)


def service_state(handler: str) -> str:
    """A sentence on how a handler's service is, as far as this process knows."""
    lane = get_lane(handler)
    if lane is None:
        return "This handler is off here: its work waits until it is on."
    return {"away": "Its service is away.", "slow": "Its service is slow."}.get(lane.state, "")


def is_off(handler: str) -> bool:
    return get_lane(handler) is None
