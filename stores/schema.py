"""The tables, their version, and how a database of an older version is brought up to date."""

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stores.records import StoreError

if TYPE_CHECKING:
    import psycopg  # else only where it is used

VERSION = 2
OLDEST_POSTGRES = 140000
POSTGRES_LOCK = 0x63616C6C  # of this program's own choosing
SQLITE_ID = "INTEGER PRIMARY KEY AUTOINCREMENT"  # else the id of one that was removed last is used again
POSTGRES_ID = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"


def _install(execute: Callable[[str], Any], version: int, id: str, bytewise: str = "") -> None:
    """Create or upgrade the tables through `execute`, in a transaction of the caller's.

    `version` is what the database has, 0 where it has none of the tables; `id` is its identity column,
    `bytewise` what sorts a text by its bytes. Raises StoreError for a version that is newer than this release.
    """
    if version > VERSION:
        raise StoreError(f"made by a newer release (version {version}, this one has {VERSION}): use that release")
    if version == VERSION:
        return
    schema = _read("schema.sql")
    text = _read(f"upgrade_{version}.sql").replace("{schema}", schema) if version else schema
    for statement in filter(str.strip, text.replace("{id}", id).replace("{bytewise}", bytewise).split(";")):
        execute(statement)


def _read(name: str) -> str:
    return re.sub(r"--.*", "", Path(__file__).with_name(name).read_text())


def upgrade_sqlite(db: sqlite3.Connection) -> None:
    """Create or upgrade the tables. This writes in any case, so that whatever hinders writing is found out."""
    db.execute("BEGIN IMMEDIATE")
    _install(db.execute, db.execute("PRAGMA user_version").fetchone()[0], SQLITE_ID)
    db.execute(f"PRAGMA user_version = {VERSION}")
    db.execute("COMMIT")


def upgrade_postgres(connection: "psycopg.Connection") -> None:
    """Create or upgrade the tables where they are not of this release's version: one process does, others wait."""
    if connection.info.server_version < OLDEST_POSTGRES:
        raise StoreError("PostgreSQL 14 or newer is needed")
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise StoreError(f"the database's encoding is {encoding}: create one with UTF8")
    if _postgres_version(connection) == VERSION:
        return
    with connection.transaction():
        connection.execute(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")
        # This also makes the server forget that it found no such table before it had the lock.
        connection.execute("CREATE TABLE IF NOT EXISTS receiver (version INTEGER NOT NULL)")
        if (version := _postgres_version(connection)) != VERSION:
            _install(connection.execute, version, POSTGRES_ID, 'COLLATE "C"')
            connection.execute("DELETE FROM receiver")
            connection.execute(f"INSERT INTO receiver VALUES ({VERSION})")


def _postgres_version(connection: "psycopg.Connection") -> int:
    """The version of the tables; 0 where there are none."""
    if connection.execute("SELECT to_regclass('receiver')").fetchall() == [(None,)]:
        return 0
    return connection.execute("SELECT coalesce(max(version), 0) FROM receiver").fetchall()[0][0]
