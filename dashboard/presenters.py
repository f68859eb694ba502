"""What the dashboard shows of calls, updates and handlers."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address
from operator import itemgetter
from typing import Any
from urllib.parse import urlsplit

from dashboard.figures import first_hour, remembered
from schemas.times import iso
from stores import Database, deliveries
from stores.deliveries import Deliveries
from stores.records import CallRecord, Job, StoredUpdate
from work.lanes import get_lane, get_lanes

# What files, wallboards and spreadsheets get of a call.
SHOWN = (
    *("id", "status", "type", "line", "line_name", "customer", "received_at", "started_at", "ended_at", "seconds"),
    *("error", "end_reason"),
)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
NOT_PUBLIC = ("localhost", ".localhost", ".local", ".internal", ".lan", ".home.arpa")

Event = dict[str, Any]
Attempt = tuple[str, float, float, str]  # of jobs.failed_attempts: the handler, when, the seconds, and why it failed


def call_state(call: CallRecord) -> dict[str, Any]:
    """One call in `/calls.json`, or a line of a file: SHOWN, times in ISO 8601."""
    values = {name: getattr(call, name) for name in SHOWN}
    return {name: iso(value) if name.endswith("_at") else value for name, value in values.items()}


def timeline(updates: Sequence[StoredUpdate], failures: Mapping[int, Sequence[Attempt]]) -> list[Event]:
    """What happened to a call, in the order of time: each update, each attempt that failed, and each that did the work
    later."""
    events = []
    for update in updates:
        attempts = failures.get(update.id, ())
        failed = Counter(handler for handler, *_ in attempts)
        events += [_received(update, failed), *_failures(update, attempts), *_successes(update, failed)]
    return sorted(events, key=itemgetter("at"))


def _received(update: StoredUpdate, failed: Counter[str]) -> Event:
    """An update, and what became of it in each handler that it was given to or that is on."""
    message, its_jobs = json.loads(update.message)["message"], {job.handler: job for job in update.jobs}
    names = dict.fromkeys([*(update.handlers or ()), *its_jobs, *(lane.name for lane in get_lanes())])
    return {
        "at": update.received_at,
        "row": update,
        "message": json.dumps(message, indent=2, ensure_ascii=False),
        "left_out": message.get("assistant", {}).get("metadata_left_out"),
        "handlers": [_outcome(update, name, its_jobs.get(name), failed[name]) for name in names],
    }


def _outcome(update: StoredUpdate, handler: str, job: Job | None, failed: int) -> dict[str, Any]:
    """What became of an update in a handler: the job and how often it was tried or, where there is none, a state."""
    lane = get_lane(handler)
    if job:
        error = None if job.state == "done" and failed else job.error  # else the timeline has it
        return {"name": handler, "job": job, "attempts": _count(job, failed), "error": error, "is_off": lane is None}
    if handler in (update.handlers or ()):
        state = "done at once"
    elif lane and not lane.wants(update.load()):
        state = "nothing to do"
    else:
        state = "not known, as it was imported" if update.handlers is None else "was off"
    return {"name": handler, "state": state}


def _count(job: Job, failed: int) -> int:
    """How many attempts a job took or has had, also before it was run again; 0 where it took none, as another update's
    message covers it."""
    if job.state != "done":
        return max(job.attempts, failed)
    return max(job.attempts, failed + 1) if job.attempts else 0


def _failures(update: StoredUpdate, attempts: Sequence[Attempt]) -> Iterator[Event]:
    numbers: Counter[str] = Counter()
    for handler, at, seconds, error in attempts:
        numbers[handler] += 1
        event = {"at": at, "of": update.status, "handler": handler, "number": numbers[handler]}
        yield event | {"seconds": seconds, "error": error}


def _successes(update: StoredUpdate, failed: Counter[str]) -> Iterator[Event]:
    for job in update.jobs:
        if job.state == "done" and job.done_at:
            number = _count(job, failed[job.handler])
            yield {"at": job.done_at, "of": update.status, "handler": job.handler, "number": number}


def whole_error(call: CallRecord, updates: Sequence[StoredUpdate]) -> str | None:
    """The error of a call as its update has it: the call has the beginning of it."""
    errors = [json.loads(update.message)["message"].get("error") for update in updates if update.status == call.status]
    return next(filter(None, errors), call.error)


def delivered(db: Database, days: int) -> list[tuple[str, Deliveries]]:
    """What became of the period's updates in each handler that is on, counted at most once in each minute."""
    now = db.now()
    rows = remembered(("deliveries", days), 60, now // 60 * 60, lambda: deliveries.since(db, first_hour(now, days)))
    return [(lane.name, rows.get(lane.name, Deliveries())) for lane in get_lanes()]


def ordinal(number: int) -> str:
    """`third`; from the eleventh on in digits."""
    if number <= len(ORDINALS):
        return ORDINALS[number - 1]
    return f"{number}{'th' if number % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def cut(text: str, most: int) -> str:
    """At most so many characters of a text; where it is cut, the last is an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1].rstrip()}…"


def service_state(handler: str) -> str:
    """A sentence on how a handler's service is, as far as this process knows."""
    lane = get_lane(handler)
    if lane is None:
        return "This handler is off here: its work waits until it is on."
    return {"away": "Its service is away.", "slow": "Its service is slow."}.get(lane.state, "")


def is_off(handler: str) -> bool:
    return get_lane(handler) is None


def is_public(url: str) -> bool:
    """Whether a provider may reach this URL: it is none of this machine, or of a private network."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_global
    except ValueError:
        return "." in host and not host.endswith(NOT_PUBLIC)
