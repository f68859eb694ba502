"""SQLite: one file, many readers, and one writer at a time in all threads and processes.

Threads queue what they have to write. Whichever gets the lock first commits everything that is queued, in one
transaction and with one sync to the disk: the more threads wait, the less each write costs. What is acknowledged
survives a loss of power.
"""

import os
import shutil
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from stores.database import Database, Execute, Rows
from stores.records import Refused, StoreError
from stores.sqlite_writer import LOCK_TIMEOUT, Busy, Writer, connect_reader, is_busy, when_free

BYTES_AN_UPDATE = 700  # of the file, settled, of a call with two; measured
FEW = 1_000_000


class SQLite(Database):
    """Opens nothing before it is used; what fails is opened afresh by the next use."""

    name = "sqlite"

    def __init__(self, path: str, clock: Callable[[], float] | None = None):
        self.path = Path(path)
        self.now = clock or time.time
        self.durability = f"{path}: what is acknowledged survives a loss of power, as long as the disk is kept"
        self._lock = threading.Lock()
        self._queue: deque[tuple[Callable[[sqlite3.Connection], Any], Future[Any]]] = deque()
        self._writer: Writer | None = None
        self._reads: set[object] = set()

    def query(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        with self._read() as db:
            return db.execute(sql, values).fetchall()

    def execute(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        return self._write(lambda db: db.execute(sql, values).fetchall())

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._locked() as deadline, self._begun(deadline) as db:
            yield lambda sql, values={}: db.execute(sql, values).fetchall()

    def chain(self, sql: str, values: Mapping[str, Any], *more: str) -> int | None:
        def run(db: sqlite3.Connection) -> int | None:
            inserted: tuple[int] | None = db.execute(sql, values).fetchone()
            if inserted is None:
                return None
            for statement in more:
                db.execute(f"WITH kept AS (SELECT :kept_id AS id) {statement}", {**values, "kept_id": inserted[0]})
            return inserted[0]

        return self._write(run)

    def advice(self) -> list[str]:
        if not os.path.exists(self.path):
            return []
        left = shutil.disk_usage(self.path.parent).free // BYTES_AN_UPDATE
        return [f"About {left:,} more updates fit onto this disk."] if left < FEW else []

    def close(self) -> None:
        with self._lock:
            writer, self._writer = self._writer, None
            if writer:
                with suppress(sqlite3.Error):
                    when_free(time.monotonic() + LOCK_TIMEOUT, writer.leave)
                writer.close()

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, which no writer waits for. Raises StoreError."""
        reading = object()
        try:
            self._reads.add(reading)  # first: from then on no writer that is intact is closed
            while not ((writer := self._writer) and writer.is_intact()):
                self._reads.discard(reading)
                with self._locked() as deadline:
                    self._joined(deadline)
                    self._reads.add(reading)
            with closing(connect_reader(self.path)) as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}") from error
        finally:
            self._reads.discard(reading)

    def _write(self, run: Callable[[sqlite3.Connection], Any]) -> Any:
        """What `run` returns of a connection within a transaction, once that is on the disk. Raises StoreError."""
        queued = (run, result := Future())
        self._queue.append(queued)
        try:
            with self._locked() as deadline:
                if not result.done():  # by the thread that had the lock before
                    self._commit_queue(deadline)
                return result.result(timeout=0)
        finally:
            with suppress(ValueError):
                self._queue.remove(queued)

    def _commit_queue(self, deadline: float) -> None:
        """Commit all that is queued. An error is everybody's, as nothing is committed then."""
        writes = []
        try:
            with self._begun(deadline) as db:
                with suppress(IndexError):
                    while True:
                        writes.append(self._queue.popleft())
                found = [run(db) for run, _ in writes]
        except BaseException as error:
            for _, result in writes:
                result.set_exception(error)
            raise
        for (_, result), value in zip(writes, found, strict=True):
            result.set_result(value)

    @contextmanager
    def _begun(self, deadline: float) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk at the end, in files that are still there; any exception undoes it."""
        writer = self._joined(deadline)
        try:
            when_free(deadline, lambda: writer.db.execute("BEGIN IMMEDIATE"))
            yield writer.db
            writer.db.execute("COMMIT")
            if not writer.is_intact():
                raise OSError("replaced while in use")
        except BaseException as error:
            writer.failed = writer.failed or not is_busy(error)
            with suppress(sqlite3.Error):
                writer.db.rollback()
            raise

    @contextmanager
    def _locked(self) -> Iterator[float]:
        """The lock, and until when to wait for other processes. Raises StoreError."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError(f"{self.path}: busy for {LOCK_TIMEOUT} s")
        try:
            yield deadline
        except sqlite3.IntegrityError as error:
            raise Refused(f"{self.path}: {error}") from error
        except (sqlite3.Error, OSError, StoreError) as error:
            raise StoreError(f"{self.path}: {error}") from error
        finally:
            self._lock.release()

    def _joined(self, deadline: float) -> Writer:
        """The writer, which is opened once no other process is in the way."""
        return when_free(deadline, lambda: self._join(deadline))

    def _join(self, deadline: float) -> Writer:
        writer = self._writer
        if writer and not writer.is_intact():
            if self._reads:
                raise Busy("replaced while it is read")
            told = writer.failed
            kept = writer.leave()
            self._writer = None
            if not (kept or told):
                raise OSError("replaced while in use")
        if not self._writer:  # an empty log may be one that was begun by mistake; those do not stay
            self._writer = Writer(self.path, trust_empty=time.monotonic() > deadline - LOCK_TIMEOUT / 4)
        return self._writer
