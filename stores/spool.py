"""What keeps updates while the Redis server cannot be reached: an SQLite file as a waiting room."""

import json
import logging
import os
import sqlite3
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

from schemas.status_update import StatusUpdate, load
from stores import Backlog, Kept, Store, StoreError
from stores.sqlite import SQLiteStore

logger = logging.getLogger(__name__)


class Spool(SQLiteStore):
    """The waiting room. Its calls are tracked where it is drained to."""

    def _track(self, db: sqlite3.Connection, update: StatusUpdate) -> None:
        pass

    def discard(self, update: StatusUpdate) -> None:
        """Remove one update and its rows."""
        key = (update.call.id, update.call.status)
        with self.write(durable=True) as db:
            db.execute("DELETE FROM updates WHERE call_id = ? AND status = ?", key)
            db.execute("DELETE FROM rows WHERE call_id = ? AND status = ?", key)

    def count(self) -> int:
        """How many updates wait. Makes no file where there is none."""
        if not os.path.exists(self.path):
            return 0
        with self.read() as db:
            return db.execute("SELECT count(*) FROM updates").fetchone()[0]


class SpooledStore:
    """`store`, but that its updates are recorded in `spool` while it cannot take them. `drain` moves them over."""

    def __init__(self, store: Store, spool: Spool):
        self._store, self._spool = store, spool
        self._unreachable = ""  # why, as far as this process knows; only `drain` tries meanwhile
        self._waiting = True  # a process before this one may have left some

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._store, verb)

    def record(
        self, update: StatusUpdate, pending: Iterable[str], due: float, *, now: float, **rows: Any
    ) -> bool | None:
        if not self._unreachable:
            try:
                return self._store.record(update, pending, due, now=now, **rows)
            except StoreError as error:
                self._unreachable = str(error)
                logger.error("updates are spooled", extra={"error": str(error)})
        self._spool.record(update, pending, now, now=now, leased=False, failed=rows.get("failed", ()))
        self._waiting = True
        return None

    def drain(self, now: float) -> None:
        """Move what is spooled into the store, all its work due. Raises StoreError while that cannot be reached."""
        if self._unreachable:
            try:
                self._store.check()
            except StoreError as error:
                self._unreachable = str(error)  # not always what it was at first
                raise
            self._unreachable = ""
        if not (self._waiting and self._spool.count()):
            return
        self._waiting = False
        try:
            for kept in self._spool.updates():
                update = load(json.loads(kept.message), datetime.fromtimestamp(kept.received_at, UTC))
                self._store.record(update, [row.handler for row in kept.rows], now, now=now, leased=False)
                self._spool.discard(update)
        except StoreError:
            self._waiting = True
            raise

    def spooled(self) -> tuple[int, str]:
        """How many updates wait, and why."""
        return self._spool.count(), self._unreachable

    def updates(self, since: float = 0) -> Iterator[Kept]:
        if self._spool.count():
            yield from self._spool.updates(since)
        yield from self._store.updates(since)

    def backlog(self) -> list[Backlog]:
        try:
            return self._store.backlog()
        except StoreError:
            return self._spool.backlog()

    def check(self) -> float | None:
        try:
            return self._store.check()
        except StoreError:
            return self._spool.check()

    def close(self) -> None:
        self._store.close()
        self._spool.close()
