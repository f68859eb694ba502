"""The one connection of a process that writes into an SQLite file.

Somebody may delete the log (-wal) or its index (-shm) while they are in use. SQLite goes on with what is deleted, and
makes new ones for whoever opens the file next; two logs of one file ruin it. So no process begins a log while another
has the file open. One that finds its log deleted moves what the log holds into the file and closes it, and the file is
opened again once all have done so.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from stores.schema import upgrade_sqlite

LOCK_TIMEOUT = 2.0  # seconds to wait for other threads, processes and programs
POLL = 0.0005  # seconds between tries: SQLite's own sleeps grow far longer than a write takes
LOG_PAGES = 4000  # 16 MB, after which they are moved into the file: more at a time is less work


class Busy(sqlite3.OperationalError):
    sqlite_errorcode = sqlite3.SQLITE_BUSY


class Writer:
    """A connection for writing, whose commits reach the disk before they return."""

    def __init__(self, path: Path, *, trust_empty: bool):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._files = _, self._wal, self._shm = (str(path), f"{path}-wal", f"{path}-shm")
        self.failed = False
        found = self._find()
        begins = None in found or not (trust_empty or _size(self._wal))
        if begins and found[0]:
            _check_unused(path)
        self.db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        self._reader = connect_reader(path)
        try:
            self._open(found)
            if begins:  # a log with something in it is one in use
                [version] = self.db.execute("PRAGMA user_version").fetchone()
                self.db.execute(f"PRAGMA user_version = {version}")
                if not _size(self._wal):
                    raise Busy("its log was deleted meanwhile")
            self.db.execute("PRAGMA foreign_keys = ON")
            self.db.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        except BaseException:
            self.close()
            raise

    def _open(self, found: list) -> None:
        self.db.execute("PRAGMA synchronous = FULL")
        if self.db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise OSError("write-ahead logging is refused: keep the file on a local disk")
        self._reader.execute("SELECT * FROM sqlite_master").fetchone()
        now = self._find()
        self._identities = now if None in found else found
        if now != self._identities or None in now:
            if now[1] == found[1] or not _size(self._wal):  # these are new, and nobody may join them
                _remove(file for file, new, old in zip(self._files[1:], now[1:], found[1:], strict=True) if new != old)
            raise Busy("its log was deleted meanwhile")
        upgrade_sqlite(self.db)

    def is_intact(self) -> bool:
        """Whether nothing has failed, and the files are still there: a commit into a deleted one succeeds and keeps
        nothing."""
        return not self.failed and self._identities == self._find()

    def leave(self) -> bool:
        """Close, losing as little as can be; whether nothing is lost. Nobody reads in this process meanwhile.

        Raises sqlite3.Error, and is still open, where what a deleted log holds cannot be moved into the file yet.
        """
        mine, found = self._identities, self._find()
        kept = found[0] == mine[0]
        if found == mine:
            self._reader.close()  # so that SQLite tidies up
        elif not kept:
            with suppress(sqlite3.Error):  # the file may be elsewhere now
                self.db.execute("PRAGMA wal_checkpoint")
            _remove(file for file, now, old in zip(self._files, found, mine, strict=True) if now == old)
        elif found[1] != mine[1] and _size(self._wal):
            kept = False  # another program has begun a log: the file would be ruined by what this one holds
        else:
            if self.db.execute("PRAGMA wal_checkpoint(FULL)").fetchone()[0]:
                raise Busy("its log was deleted while others use it")
            _remove((self._wal, self._shm))  # nobody may join what is left
        self.close()
        return kept

    def close(self) -> None:
        """Close as it is: SQLite lets the files alone where the last connection to be closed cannot write."""
        self.db.close()
        self._reader.close()

    def _find(self) -> list[tuple[int, int] | None]:
        return [*map(_identify, self._files)]


def _check_unused(path: Path) -> None:
    """Raise an error of being busy while any process has the file open."""
    with closing(sqlite3.connect(path, timeout=0)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            db.execute("SELECT * FROM sqlite_master").fetchone()
        except sqlite3.OperationalError as error:
            if is_busy(error):
                raise Busy("its log is gone, but others still have it open: end them") from error
            raise


def connect_reader(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT, check_same_thread=False)


def _identify(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _size(file: str) -> int:
    return os.path.getsize(file) if os.path.exists(file) else 0


def _remove(files: Iterable[str]) -> None:
    for file in files:
        with suppress(FileNotFoundError):
            os.unlink(file)


def is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def when_free(deadline: float, act: Callable[[], Any]) -> Any:
    """What `act` returns once no other process or program has the file locked, by `deadline` (of time.monotonic)."""
    while True:
        try:
            return act()
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(POLL)
