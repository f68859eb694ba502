"""One SQLite file: many readers, and one writer at a time in all threads and processes."""

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TextIO

from stores import StoreError

LOCK_TIMEOUT = 2.0  # seconds to wait for other threads and processes
BUSY_TIMEOUT = 1.0  # seconds to wait, after that, for other programs that use the file
SCHEMA = Path(__file__).with_name("sqlite.sql").read_text()


class SQLiteFile:
    """Opens nothing before it is used. What fails is closed, so that the next use starts afresh."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.durability = f"{path}: what is acknowledged survives a loss of power, as long as the disk is kept"
        self._lock = threading.Lock()
        self._lock_file: TextIO | None = None
        self._writer: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._writer:
            self._writer.close()
        if self._lock_file:
            self._lock_file.close()
        self._writer = self._lock_file = None

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, which no writer waits for. Raises StoreError."""
        if not self.path.exists():
            with self.write():
                pass
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)) as db:
                yield db
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction, committed at the end and undone by any exception. Raises StoreError.

        A `durable` one has reached the disk when it ends. Another reaches it with the next durable one at the latest,
        and in order: a loss of power undoes the last of them, as if they had not happened yet. A durable one also
        makes sure that the file is still there, as a commit into a deleted one succeeds and keeps nothing.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError(f"{self.path}: busy for {LOCK_TIMEOUT} s")
        try:
            with self._process_lock(deadline):
                db = self._writer or self._open()
                if durable != self._durable:
                    db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                    self._durable = durable
                db.execute("BEGIN IMMEDIATE")
                yield db
                db.execute("COMMIT")
                if durable and self._identity != self._find_identity():
                    raise OSError("replaced while in use")
        except BaseException as error:
            self.close()
            if isinstance(error, sqlite3.Error | OSError):
                raise StoreError(f"{self.path}: {error}") from error
            raise
        finally:
            self._lock.release()

    @contextmanager
    def _process_lock(self, deadline: float) -> Iterator[None]:
        """What SQLite's busy timeout does, without its sleeps, which grow far longer than a write takes."""
        if self._lock_file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = open(f"{self.path}.lock", "w")
        while True:
            try:
                fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise OSError(f"locked by another process for {LOCK_TIMEOUT} s") from None
                time.sleep(0.0005)
        try:
            yield
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
        self._writer, self._identity, self._durable = db, self._find_identity(), None
        if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise OSError("write-ahead logging is refused: keep the file on a local disk")
        db.executescript(SCHEMA)
        return db

    def _find_identity(self) -> tuple[int, int]:
        found = os.stat(self.path)
        return found.st_dev, found.st_ino
