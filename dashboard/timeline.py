"""What happened to a call."""

import json
from operator import itemgetter
from typing import Any

from stores import Database, jobs, updates
from stores.records import Job, StoredUpdate
from work.lanes import get_lanes


def timeline(db: Database, call_id: str) -> list[dict[str, Any]]:
    """What happened to a call, in the order of time: each update, each attempt that failed, and each that did the work
    later."""
    events, failures = [], jobs.failed_attempts(db, call_id)
    for update in updates.of_call(db, call_id):
        events.append(_received(update))
        for job in update.jobs:
            if job.state == "done" and job.done_at:
                events.append({"at": job.done_at, "of": update.status, "handler": job.handler})
    for status, handler, at, seconds, error in failures:
        events.append({"at": at, "of": status, "handler": handler, "seconds": seconds, "error": error})
    return sorted(events, key=itemgetter("at"))


def _received(update: StoredUpdate) -> dict[str, Any]:
    """An update, and what became of it in each handler that it was given to or that is on: a job, or a state where
    there is none."""
    message = json.loads(update.message)["message"]
    outcomes: dict[str, Job | str] = dict.fromkeys(update.handlers or (), "done at once")
    outcomes |= {job.handler: job for job in update.jobs}
    not_given = "not known, as it was imported" if update.handlers is None else "was off"
    for lane in get_lanes():
        if lane.name not in outcomes:
            outcomes[lane.name] = not_given if lane.wants(update.load()) else "nothing to do"
    return {
        "at": update.received_at,
        "row": update,
        "message": json.dumps(message, indent=2, ensure_ascii=False),
        "left_out": message.get("assistant", {}).get("metadata_left_out"),
        "outcomes": outcomes,
    }
