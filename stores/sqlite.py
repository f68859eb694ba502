"""SQLite: one file, many readers, and one writer at a time in all threads and processes.

Threads queue what they write. Whichever gets the lock first commits all that is queued, in one transaction with one
sync to the disk: the more threads wait, the less each write costs. What is acknowledged survives a loss of power.
"""

import atexit
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
from typing import Any, TypeVar

from stores.database import Database, Execute, Rows
from stores.records import Refused, StoreError
from stores.schema import SQLITE_TABLES, VERSION, UnusableDatabase, check_version

PATIENCE = 2.0  # seconds to wait for other processes and programs
BAD_VALUES = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, OverflowError, UnicodeError)

Result = TypeVar("Result")
Write = tuple[Callable[[sqlite3.Connection], Any], Future[Any]]


class SQLite(Database):
    """Opens nothing before it is used; after whatever fails the next use opens it afresh. `chain` leaves `reserve`
    bytes of the disk free, so that what is kept can still be removed."""

    name = "sqlite"

    def __init__(self, path: str | Path, clock: Callable[[], float] | None = None, reserve: int = 0):
        self.path = Path(path)
        self.durability = f"{path}: what is acknowledged survives a loss of power, as long as the disk is kept"
        self.now, self._reserve = clock or time.time, reserve
        self._lock, self._queue = threading.Lock(), deque[Write]()
        self._writer: sqlite3.Connection | None = None
        self._inode = 0  # of the file, once that has its tables
        atexit.register(self.close)

    def query(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        if not self._is_there():
            self._write(lambda db: None)  # which opens it
        uri = f"{self.path.absolute().as_uri()}?mode=ro"
        with self._errors(), closing(sqlite3.connect(uri, uri=True, timeout=PATIENCE)) as db:
            return db.execute(sql, values).fetchall()

    def execute(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        return self._write(lambda db: db.execute(sql, values).fetchall())

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._errors(), self._lock, self._begun() as db:
            yield lambda sql, values={}: db.execute(sql, values).fetchall()

    def chain(self, sql: str, values: Mapping[str, Any], *more: str) -> int | None:
        def run(db: sqlite3.Connection) -> int | None:
            if self._reserve and shutil.disk_usage(self.path.parent).free < self._reserve:
                raise OSError(f"less than {self._reserve / 1e6:.0f} MB are free on its disk")
            ids: list[tuple[int]] = db.execute(sql, values).fetchall()
            for (id,) in ids:
                for statement in more:
                    db.execute(f"WITH kept AS (SELECT :kept_id AS id) {statement}", {**values, "kept_id": id})
            return ids[0][0] if ids else None

        return self._write(run)

    def close(self) -> None:
        """Move all that is kept into the file itself, and close it."""
        with suppress(sqlite3.Error), self._lock:
            if self._writer:
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._drop()
            self._inode = 0

    def _write(self, run: Callable[[sqlite3.Connection], Result]) -> Result:
        """What `run` returns of a connection within a transaction, once that is on the disk. Raises StoreError."""
        self._queue.append((run, result := Future[Result]()))
        with self._errors(), self._lock:
            if not result.done():  # by the thread that had the lock before
                self._commit([self._queue.popleft() for _ in range(len(self._queue))])
            return result.result(timeout=0)

    def _commit(self, writes: list[Write]) -> None:
        """Run `writes` in one transaction. Where that fails, run each in its own, as one must fail no other; but where
        the file is the cause, fail them all at once."""
        try:
            with self._begun() as db:
                values = [run(db) for run, _ in writes]
        except Exception as error:
            for write in writes:
                if len(writes) == 1 or isinstance(error, StoreError):
                    write[1].set_exception(error)
                else:
                    self._commit([write])
        else:
            for (_, result), value in zip(writes, values, strict=True):
                result.set_result(value)

    @contextmanager
    def _begun(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk at the end, in the file that is still there; any exception undoes it.
        Raises StoreError where the file is the cause."""
        try:
            with self._errors():
                db = self._writer or self._open()
                db.execute("BEGIN IMMEDIATE")
            with db:
                yield db
            if not self._is_there():
                raise StoreError(f"{self.path}: replaced while in use")
        except BaseException:
            self._drop()
            raise

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch(0o600)  # SQLite's other files get the same mode
        db = self._writer = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise OSError("write-ahead logging is refused: keep the file on a local disk")
        db.execute("PRAGMA synchronous = FULL")  # each commit is on the disk before it returns
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")  # who is forgotten is in no file
        check_version(db.execute("PRAGMA user_version").fetchone()[0])
        # This writes in any case, so that whatever hinders writing is found out.
        db.executescript(f"BEGIN IMMEDIATE; {SQLITE_TABLES} PRAGMA user_version = {VERSION}; COMMIT")
        self._inode = self.path.stat().st_ino
        return db

    def _is_there(self) -> bool:
        """Whether the file that was opened is still the one at the path."""
        return os.path.exists(self.path) and self.path.stat().st_ino == self._inode

    def _drop(self) -> None:
        if self._writer:
            self._writer.close()
        self._writer = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises StoreError, with the file's name, for whatever SQLite and the disk raise."""
        try:
            yield
        except BAD_VALUES as error:
            raise Refused(f"{self.path}: {error}") from error
        except (sqlite3.Error, OSError, UnusableDatabase) as error:
            raise StoreError(f"{self.path}: {error}") from error
