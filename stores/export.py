"""What is kept, update by update, as `flask export` prints it and the dashboard downloads it."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from schemas.times import iso
from stores import spool, updates
from stores.database import Database
from stores.records import Job, StoredUpdate


def exported_lines(db: Database, since: float = 0) -> Iterator[str]:
    """What is kept at `since` or later, after what waits in the spool: lines of JSON, which `flask import` takes."""
    for database in [db.spool, db] if db.spool and spool.waiting(db) else [db]:
        for update in updates.since(database, since):
            yield json.dumps(_exported(update)) + "\n"


def _exported(kept: StoredUpdate) -> dict[str, Any]:
    """An update in an export. `jobs` are those that were not done at once."""
    message = json.loads(kept.message)["message"]
    return {
        "call_id": kept.call_id,
        "status": kept.status,
        "timestamp": message["timestamp"],
        "received_at": iso(kept.received_at),
        "kept_at": iso(kept.kept_at),
        "times": kept.times,
        "last_received_at": iso(kept.last_received_at),
        "handlers": kept.handlers,
        "pending": [job.handler for job in kept.jobs if job.is_open],
        "failed": [job.handler for job in kept.jobs if job.state == "failed"],
        "jobs": [_job(job) for job in kept.jobs],
        "message": message,
    }


def _job(job: Job) -> dict[str, Any]:
    """A job in an export: what is leased is pending there, as whoever has it does not go along."""
    times = {name: iso(getattr(job, name)) for name in ("due_at", "first_tried_at", "done_at")}
    return asdict(job) | times | {"state": "pending" if job.is_open else job.state}
