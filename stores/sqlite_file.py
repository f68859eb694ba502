"""One SQLite file: many readers, and one writer at a time in all threads and processes.

Somebody may delete the log (-wal) or its index (-shm) while they are in use. SQLite goes on with what is deleted, and
makes new ones for whoever opens the file next; two logs of one file ruin it. So no process begins a log while another
has the file open. One that finds its log deleted moves what the log holds into the file and closes it, and the file is
opened again once all have done so.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from stores import StoreError
from stores.sqlite_log import LOCK_TIMEOUT, Busy, Writer, connect_reader, is_busy, when_free

LOOK_EVERY = 0.01  # seconds between looks at the files where no sync does it: one costs 2 % of an update


class SQLiteFile:
    """Opens nothing before it is used. What fails is closed by the next use, which starts afresh."""

    def __init__(self, path: str):
        self.path = Path(path)
        self._lock = threading.Lock()
        self._writer: Writer | None = None
        self._reads: set[object] = set()

    def close(self) -> None:
        with self._lock:
            writer, self._writer = self._writer, None
            if writer:
                with suppress(sqlite3.Error):
                    when_free(time.monotonic() + LOCK_TIMEOUT, writer.leave)
                writer.close()

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A connection of the caller's own, which no writer waits for. Raises StoreError."""
        reading = object()
        try:
            self._reads.add(reading)  # first: from then on no writer that is intact is closed
            while not ((writer := self._writer) and writer.is_intact()):
                self._reads.discard(reading)
                with self._joined():
                    self._reads.add(reading)
            with closing(connect_reader(self.path)) as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}") from error
        finally:
            self._reads.discard(reading)

    @contextmanager
    def write(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """A transaction, committed at the end and undone by any exception. Raises StoreError.

        A `durable` one has reached the disk when it ends. Another reaches it with the next durable one at the latest,
        and in order: a loss of power undoes the last of them, as if they had not happened yet.
        """
        with self._joined() as (writer, deadline):
            try:
                when_free(deadline, lambda: writer.db.execute("BEGIN IMMEDIATE"))
                yield writer.db
                writer.db.execute("COMMIT")
            except BaseException as error:
                writer.failed = writer.failed or not is_busy(error)
                with suppress(sqlite3.Error):
                    writer.db.rollback()
                raise
            writer.commits += 1
            commits = writer.commits
        if durable:
            try:
                writer.sync(commits)
            except (OSError, ValueError) as error:
                raise StoreError(f"{self.path}: {error}") from error

    @contextmanager
    def _joined(self) -> Iterator[tuple[Writer, float]]:
        """The writer, for this thread alone, and until when to wait for other processes. Raises StoreError."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        if not self._lock.acquire(timeout=LOCK_TIMEOUT):
            raise StoreError(f"{self.path}: busy for {LOCK_TIMEOUT} s")
        try:
            yield when_free(deadline, lambda: self._join(deadline)), deadline
        except (sqlite3.Error, OSError, StoreError) as error:
            raise StoreError(f"{self.path}: {error}") from error
        finally:
            self._lock.release()

    def _join(self, deadline: float) -> Writer:
        writer = self._writer
        if writer and not writer.is_intact(LOOK_EVERY):
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
