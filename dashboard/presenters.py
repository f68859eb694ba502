"""What the dashboard shows of calls, updates and handlers."""

import json
from typing import Any

from flask import current_app

from handlers import HANDLERS, is_on
from handlers.service import service
from schemas.times import iso
from stores.records import Call, Job, StoredUpdate

# What files, wallboards and spreadsheets get of a call.
SHOWN = ("id", "status", "type", "line", "line_name", "customer", "received_at", "started_at", "ended_at", "seconds")
SHOWN += ("error", "end_reason")


def call_state(call: Call) -> dict[str, Any]:
    """One call in `/calls.json`, or a line of a file: SHOWN, times in ISO 8601."""
    found = {name: getattr(call, name) for name in SHOWN}
    return {name: iso(value) if name.endswith("_at") else value for name, value in found.items()}


def kept_update(kept: StoredUpdate) -> dict[str, Any]:
    """One update as received, and what became of it in each handler that is on or has a job."""
    jobs = {job.handler: job for job in kept.jobs}
    on = [handler.__name__ for handler in HANDLERS if is_on(handler.__name__, current_app.config)]
    done = Job("", "done", None, attempts=1, done_at=kept.received_at)  # at once: no job is kept of that
    return {
        "status": kept.status,
        "received_at": kept.received_at,
        "message": json.dumps(json.loads(kept.message)["message"], indent=2, ensure_ascii=False),
        "handlers": [(name, jobs.get(name, done)) for name in dict.fromkeys([*on, *jobs])],
    }


def paused_at(handler: str) -> float | None:
    """Since when this process asks a handler's service only now and then."""
    return service(handler).breaker.paused_at
