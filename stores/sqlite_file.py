"""An SQLite file: how it is opened, so that a commit is on the disk and nobody but its owner reads it."""

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from stores.schema import create_sqlite

LOCK_TIMEOUT = 2.0  # seconds to wait for other threads, processes and programs
PRAGMAS = (
    "synchronous = FULL",  # each commit is on the disk before it returns
    "foreign_keys = ON",
    "secure_delete = ON",  # who is forgotten is in no file
    "wal_autocheckpoint = 4000",  # pages, 16 MB: more at a time is less work
)


def connect_writer(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # SQLite's other files get the same mode
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    db = sqlite3.connect(path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
    try:
        if db.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise OSError("write-ahead logging is refused: keep the file on a local disk")
        for pragma in PRAGMAS:
            db.execute(f"PRAGMA {pragma}")
        create_sqlite(db)
    except BaseException:
        db.close()
        raise
    return db


def connect_reader(path: Path) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_TIMEOUT, check_same_thread=False)


def find_inode(path: Path) -> int | None:
    """Which file is at `path`; None where there is none."""
    return os.stat(path).st_ino if os.path.exists(path) else None
