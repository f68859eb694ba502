"""The spool: an SQLite file where updates wait while PostgreSQL cannot be reached."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice

from marshmallow import ValidationError

from stores import locks, updates
from stores.database import Database
from stores.records import Refused, StoredUpdate, StoreError
from stores.sqlite import SQLite

RESERVE = 64_000_000  # bytes of its disk that are left free: what is removed is written first, too
LOCK = "drain"
BATCH = 20  # updates that are moved at a time
BATCH_TIME = 30.0  # seconds, for which no other process moves them: more than a batch takes
PAUSE = 0.5  # seconds between two drains at a stop
TOLD_AGAIN = 3600.0  # seconds between two log lines about an update that the database refuses

logger = logging.getLogger(__name__)


def drain(db: Database, is_over: Callable[[], bool] = lambda: False) -> bool:
    """Move what waits in the spool into `db`, its work due now, until `is_over`. Returns whether all of it was tried.
    Raises StoreError while that cannot be done."""
    if db.failure:
        db.probe()
    if not (spool := db.spool) or not waiting(db):
        return True
    if not locks.acquire(spool, LOCK, BATCH_TIME):
        return False
    try:
        stored = updates.since(spool)
        while batch := list(islice(stored, BATCH)):
            if is_over():
                return False
            locks.renew(spool, LOCK, BATCH_TIME)
            _discard(spool, [update for update in batch if _move(db, spool, update)])
        return True
    finally:
        locks.release(spool, LOCK)


def drain_at_stop(db: Database, until: float) -> None:
    """Drain until nothing waits or `until` (of time.monotonic), whatever fails meanwhile: for a process whose disk is
    thrown away with it."""
    while waiting(db) and time.monotonic() < until:
        with suppress(StoreError):  # the log says below what stays
            if drain(db, lambda: time.monotonic() >= until):
                break
        time.sleep(PAUSE)  # the server is away, or another process drains
    if number := waiting(db):
        logger.error("stopped with updates in the spool", extra={"fields": {"spooled": number}})


@contextmanager
def locked(spool: SQLite) -> Iterator[None]:
    """Nothing moves out of the spool within this block. Raises StoreError while something does."""
    if not locks.acquire(spool, LOCK, BATCH_TIME):
        raise StoreError(f"{spool.path}: what waits there is being moved: try again in half a minute")
    try:
        yield
    finally:
        locks.release(spool, LOCK)


def _move(db: Database, spool: SQLite, stored: StoredUpdate) -> bool:
    """Keep a spooled update in `db`; whether that took it. Raises StoreError where it takes none now."""
    times, last = stored.times, stored.last_received_at
    try:
        updates.keep(db, stored.load(), stored.jobs, stored.handlers, times=times, last_received_at=last)
    except (Refused, ValidationError, ValueError) as error:
        if locks.acquire(spool, f"told of {stored.id}", TOLD_AGAIN):
            logger.error("stays spooled", extra={"call_id": stored.call_id, "error": str(error)})
        return False
    return True


def _discard(spool: SQLite, moved: list[StoredUpdate]) -> None:
    """Remove updates that are kept elsewhere by now, with all that is known of their calls."""
    ids = ", ".join(str(update.id) for update in moved)
    with spool.transaction() as execute:
        execute(f"DELETE FROM updates WHERE id IN ({ids})")
        execute("DELETE FROM calls WHERE NOT EXISTS (SELECT 1 FROM updates WHERE call_id = calls.id)")


def waiting(db: Database) -> int:
    """How many updates wait in the spool. Makes no file where there is none.

    A spool that cannot be read has none; `db.spool.failure` then says why, and the log does once."""
    if not db.spool:
        return 0
    number, failure = 0, ""
    try:
        if os.path.exists(db.spool.path):
            number = updates.count(db.spool)
    except StoreError as error:
        failure = str(error)
    if failure and failure != db.spool.failure:
        logger.error("the spool cannot be used", extra={"error": failure})
    db.spool.failure = failure
    return number
