"""What the dashboard shows of calls and updates, and the figures of the last 24 hours."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from flask import current_app

from handlers import HANDLERS, is_on
from handlers.outbound import service
from logs import mask
from schemas.status_update import ENDED_WITH_ERROR, isoformat
from stores.records import Backlog, Call, HourlyCount, StoredUpdate

HOURS = 24


def iso(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601 in UTC."""
    return None if seconds is None else isoformat(datetime.fromtimestamp(seconds, UTC))


def call_state(call: Call) -> dict[str, Any]:
    """One call in `/calls.json`."""
    plain = ("id", "status", "type", "line", "line_name", "customer", "seconds", "error", "end_reason")
    times = ("started_at", "ended_at", "received_at")
    return {name: getattr(call, name) for name in plain} | {name: iso(getattr(call, name)) for name in times}


def kept_update(kept: StoredUpdate) -> dict[str, Any]:
    """One update as received, with the job of each handler that is on or has one; a handler without one is done."""
    jobs = {job.handler: job for job in kept.jobs}
    on = [handler.__name__ for handler in HANDLERS if is_on(handler.__name__, current_app.config)]
    names = dict.fromkeys([*on, *jobs])
    return {
        "status": kept.status,
        "received_at": kept.received_at,
        "message": json.dumps(json.loads(kept.message)["message"], indent=2, ensure_ascii=False),
        "handlers": [(name, jobs.get(name)) for name in names],
    }


def handler_state(backlog: Backlog) -> dict[str, Any]:
    """One handler with work to do in `/healthz`. Whether it is paused is what this process knows."""
    return {
        "pending": backlog.pending,
        "failed": backlog.failed,
        "oldest_pending_at": iso(backlog.oldest),
        "next_try_at": iso(backlog.due_at),
        "paused_since": iso(paused_at(backlog.handler)),
        "error": backlog.error and mask(backlog.error),  # anybody may ask
    }


def paused_at(handler: str) -> float | None:
    """Since when this process asks a handler's service only now and then."""
    return service(handler).breaker.paused_at


def first_hour(now: float) -> int:
    """When the first of the 24 hours began, of which the last is the one that `now` is in."""
    return (int(now // 3600) - HOURS + 1) * 3600


def last_24_hours(figures: Iterable[HourlyCount], now: float) -> dict[str, Any]:
    """Calls, errors and mean duration, in all and by hour, and the errors by message, most frequent first.

    The rate is None where there were no calls, the mean where no call's duration is known.
    """
    hours = {first_hour(now) + 3600 * n: {"calls": 0, "errors": 0} for n in range(HOURS)}
    messages: dict[str, dict[str, Any]] = {}
    timed, seconds = 0, 0.0
    for each in figures:
        if each.hour not in hours:
            continue
        timed, seconds = timed + each.timed, seconds + each.seconds
        hours[each.hour]["calls"] += each.calls
        if each.status == ENDED_WITH_ERROR:
            hours[each.hour]["errors"] += each.calls
            known = messages.setdefault(each.error or "", {"calls": 0, "latest": each.latest})
            known.update(calls=known["calls"] + each.calls, latest=max(known["latest"], each.latest))
    calls, errors = (sum(hour[name] for hour in hours.values()) for name in ("calls", "errors"))
    ranked = sorted(messages.items(), key=lambda item: (-item[1]["calls"], item[0]))
    return {
        "calls": calls,
        "errors": errors,
        "error_rate": errors / calls if calls else None,
        "mean_seconds": seconds / timed if timed else None,
        "hours": [{"hour": iso(hour), **counted} for hour, counted in hours.items()],
        "errors_by_message": [{"error": error, "calls": n["calls"], "latest": iso(n["latest"])} for error, n in ranked],
    }
