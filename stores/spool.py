"""The spool: an SQLite file where updates wait while PostgreSQL cannot be reached."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from threading import Event

from stores import locks, updates
from stores.database import Database
from stores.records import StoredUpdate, StoreError

BATCH = 200  # updates that are moved at a time
WRITERS = 4
BATCH_TIME = 5.0  # seconds, for which no other process moves them
TOLD_AGAIN = 3600.0  # seconds between two log lines about an update that the database refuses

logger = logging.getLogger(__name__)


def drain(db: Database, stopping: Event) -> None:
    """Move what waits in the spool into `db`, its work due now, until `stopping`. Raises StoreError while that cannot
    be done."""
    if db.failure:
        db.probe()
    if not waiting(db) or not locks.acquire(db.spool, "drain", BATCH_TIME):
        return
    try:
        with ThreadPoolExecutor(WRITERS) as pool:  # so that they share the server's waits for its disk
            stored = updates.since(db.spool)
            while not stopping.is_set() and (batch := list(islice(stored, BATCH))):
                locks.renew(db.spool, "drain", BATCH_TIME)
                moved = list(pool.map(partial(_move, db), batch))
                _discard(db.spool, [each for each, was_moved in zip(batch, moved, strict=True) if was_moved])
    finally:
        locks.renew(db.spool, "drain", 0)


def _move(db: Database, stored: StoredUpdate) -> bool:
    """Keep a spooled update in `db`; whether that took it. Raises StoreError where it takes none."""
    receipts = {"times": stored.times, "last_received_at": stored.last_received_at}
    try:
        updates.keep(db, stored.load(), stored.jobs, stored.handlers, **receipts)
    except StoreError as error:
        if db.failure:
            raise
        if locks.acquire(db.spool, f"told of {stored.id}", TOLD_AGAIN):
            logger.error("stays spooled", extra={"call_id": stored.call_id, "error": str(error)})
        return False
    return True


def _discard(db: Database, moved: list[StoredUpdate]) -> None:
    """Remove updates that are kept elsewhere by now, with all that is known of their calls."""
    if not moved:
        return
    ids = ", ".join(str(stored.id) for stored in moved)
    with db.transaction() as execute:
        execute(f"DELETE FROM updates WHERE id IN ({ids})")
        execute("DELETE FROM calls WHERE NOT EXISTS (SELECT 1 FROM updates WHERE call_id = calls.id)")


def waiting(db: Database) -> int:
    """How many updates wait in the spool. Makes no file where there is none."""
    return updates.count(db.spool) if db.spool and os.path.exists(db.spool.path) else 0
