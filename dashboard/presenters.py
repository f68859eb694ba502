"""What the dashboard shows of calls, updates and handlers."""

import json
from datetime import UTC, datetime
from typing import Any

from flask import current_app

from handlers import HANDLERS, is_on
from handlers.service import service
from schemas.status_update import isoformat
from stores.records import Call, Job, StoredUpdate


def iso(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC."""
    return None if seconds is None else isoformat(datetime.fromtimestamp(seconds, UTC))


def call_state(call: Call) -> dict[str, Any]:
    """One call in `/calls.json`."""
    plain = ("id", "status", "type", "line", "line_name", "customer", "seconds", "error", "end_reason")
    times = ("started_at", "ended_at", "received_at")
    return {name: getattr(call, name) for name in plain} | {name: iso(getattr(call, name)) for name in times}


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
