"""What is kept, update by update, as `flask export` prints it and the dashboard downloads it."""

import json
from collections.abc import Iterator
from typing import Any

from schemas.times import iso
from stores import spool, updates
from stores.database import Database
from stores.records import StoredUpdate


def every_update(db: Database, since: float = 0) -> Iterator[StoredUpdate]:
    """What is kept at `since` or later, and what waits in the spool."""
    if spool.waiting(db):
        yield from updates.since(db.spool, since)
    yield from updates.since(db, since)


def exported(kept: StoredUpdate) -> dict[str, Any]:
    """One line of the export; `flask import` takes it."""
    message = json.loads(kept.message)["message"]
    return {
        "call_id": kept.call_id,
        "status": kept.status,
        "timestamp": message["timestamp"],
        "received_at": iso(kept.received_at),
        "kept_at": iso(kept.kept_at),
        "pending": [job.handler for job in kept.jobs if job.is_open],
        "failed": [job.handler for job in kept.jobs if job.state == "failed"],
        "done_later": [
            {"handler": job.handler, "done_at": iso(job.done_at)} | {"attempts": job.attempts, "error": job.error}
            for job in kept.jobs
            if job.state == "done"
        ],
        "message": message,
    }
