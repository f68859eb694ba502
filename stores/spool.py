"""The spool: an SQLite file where updates wait while PostgreSQL cannot be reached."""

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from marshmallow import ValidationError

from stores import locks, updates
from stores.database import Database
from stores.records import Refused, StoredUpdate, StoreError

RESERVE = 64_000_000  # bytes of its disk that are left free: what is removed is written first, too

logger = logging.getLogger(__name__)


def drain(db: Database, is_over: Callable[[], bool] = lambda: False) -> None:
    """Move what waits in the spool into `db`, its work due now, until `is_over`. Raises StoreError while that cannot be
    done."""
    if db.failure:
        db.probe()
    if not (spool := db.spool) or not waiting(db):
        return
    with locked(spool):
        for stored in updates.since(spool):
            if is_over():
                return
            _move(db, spool, stored)


@contextmanager
def locked(spool: Database) -> Iterator[None]:
    """Nothing else moves out of the spool within this block, which waits for what does. Processes lock its folder, as
    a lock of the system ends with whoever has it."""
    folder = os.open(spool.path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _move(db: Database, spool: Database, stored: StoredUpdate) -> None:
    """Keep a spooled update in `db`, and remove it here with what is known of its call. One that `db` does not take
    stays. Raises StoreError where it takes none now."""
    times, last = stored.times, stored.last_received_at
    try:
        updates.keep(db, stored.load(), stored.jobs, stored.handlers, times=times, last_received_at=last)
    except (Refused, ValidationError, ValueError) as error:
        if locks.acquire(spool, f"told of {stored.id}", 3600.0):
            logger.error("stays spooled", extra={"call_id": stored.call_id, "error": str(error)})
        return
    ids = {"update": stored.id, "call": stored.call_id}
    with spool.transaction() as execute:
        execute("DELETE FROM updates WHERE id = :update", ids)
        execute("DELETE FROM calls WHERE id = :call AND NOT EXISTS (SELECT 1 FROM updates WHERE call_id = :call)", ids)


def waiting(db: Database) -> int:
    """How many updates wait in the spool. Makes no file where there is none.

    A spool that cannot be read has none; `db.spool.failure` then says why, and the log does once."""
    if not (spool := db.spool):
        return 0
    try:
        number, failure = (updates.count(spool) if os.path.exists(spool.path) else 0), ""
    except StoreError as error:
        number, failure = 0, str(error)
        if failure != spool.failure:
            logger.error("the spool cannot be used", extra={"error": failure})
    spool.failure = failure
    return number
