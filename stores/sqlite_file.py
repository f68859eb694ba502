"""One SQLite file: many readers, and one writer at a time in all threads and processes."""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from stores import StoreError
from stores.schema import VERSION, install

LOCK_TIMEOUT = 2.0  # seconds to wait for other threads, processes and programs
POLL = 0.0005  # seconds between tries: SQLite's own sleeps grow far longer than a write takes
IDENTITY = "INTEGER PRIMARY KEY AUTOINCREMENT"  # else the id of one that was removed last is used again
LOG_PAGES = 4000  # 16 MB, after which they are moved into the file: more at a time is less work

_sync_data = getattr(os, "fdatasync", os.fsync)


class _Writer:
    """A connection for writing.

    SQLite's log is brought to the disk here, not by SQLite at each commit: so nobody waits with the lock for the disk,
    and one sync serves all whose commits came before it.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._set_up(path)
        except BaseException:
            self.db.close()  # else the file stays locked for as long as somebody has the error
            raise

    def _set_up(self, path: Path) -> None:
        if self.db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise OSError("write-ahead logging is refused: keep the file on a local disk")
        self._install()  # with synchronous = FULL, which also brings the log's own name to the disk
        self.db.execute("PRAGMA synchronous = NORMAL")
        self.db.execute("PRAGMA foreign_keys = ON")
        self.db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        self._files = (path, f"{path}-wal")
        self._log = open(self._files[1], "rb")
        self._identities = self._find_identities()
        self._syncing, self.commits, self._synced = threading.Lock(), 0, 0

    def _install(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        install(self.db.execute, self.db.execute("PRAGMA user_version").fetchone()[0], IDENTITY)
        self.db.execute(f"PRAGMA user_version = {VERSION}")  # a write: whatever hinders writing is found out now
        self.db.execute("COMMIT")

    def close(self) -> None:
        with self._syncing:
            self.db.close()
            self._log.close()

    def sync(self, commits: int) -> None:
        """Return when the first `commits` have reached the disk, and the files are still there: a commit into a deleted
        one succeeds and keeps nothing. Raises OSError, or ValueError where it was closed meanwhile."""
        with self._syncing:
            if self._synced >= commits:
                return
            commits = self.commits
            try:
                _sync_data(self._log.fileno())
                if self._identities != self._find_identities():
                    raise OSError("replaced while in use")
            except OSError:
                self._log.close()  # an error is told once: who waits must not take the next sync for a success
                raise
            self._synced = commits

    def _find_identities(self) -> list[tuple[int, int]]:
        return [(found.st_dev, found.st_ino) for found in map(os.stat, self._files)]


class SQLiteFile:
    """Opens nothing before it is used. What fails is closed, so that the next use starts afresh."""

    def __init__(self, path: str):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._writer: _Writer | None = None

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        if writer:
            writer.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, which no writer waits for. Raises StoreError."""
        if not os.path.exists(self.path):
            with self.write():
                pass
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT)) as db:
                if db.execute("PRAGMA user_version").fetchone() != (VERSION,):
                    with self.write():
                        pass
                yield db
        except sqlite3.Error as error:
            raise StoreError(f"{self.path}: {error}") from error

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction, committed at the end and undone by any exception. Raises StoreError.

        A `durable` one has reached the disk when it ends. Another reaches it with the next durable one at the latest,
        and in order: a loss of power undoes the last of them, as if they had not happened yet.
        """
        deadline = time.monotonic() + LOCK_TIMEOUT
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError(f"{self.path}: busy for {LOCK_TIMEOUT} s")
        try:
            self._writer = writer = self._writer or _when_free(deadline, lambda: _Writer(self.path))
            _when_free(deadline, lambda: writer.db.execute("BEGIN IMMEDIATE"))
            yield writer.db
            writer.db.execute("COMMIT")
            writer.commits += 1
            commits = writer.commits
        except BaseException as error:
            self._close()
            if isinstance(error, sqlite3.Error | OSError | StoreError):
                raise StoreError(f"{self.path}: {error}") from error
            raise
        finally:
            self._lock.release()
        if durable:
            self._sync(writer, commits)

    def _sync(self, writer: _Writer, commits: int) -> None:
        try:
            writer.sync(commits)
        except (OSError, ValueError) as error:
            with self._lock:
                if self._writer is writer:
                    with suppress(sqlite3.Error):  # what the log may have lost, the file can still get
                        writer.db.execute("PRAGMA wal_checkpoint")
                    self._close()
            raise StoreError(f"{self.path}: {error}") from error


def _when_free(deadline: float, act: Callable[[], Any]) -> Any:
    """What `act` returns once no other process or program has the file locked, by `deadline` (of time.monotonic)."""
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(POLL)
