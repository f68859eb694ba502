"""The tables and their version. There are no upgrades: a database of another version is refused."""

import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg  # else only where it is used

VERSION = 3
OLDEST_POSTGRES = 140000
POSTGRES_LOCK = 0x63616C6C  # of this program's own choosing
SQLITE_ID = "INTEGER PRIMARY KEY AUTOINCREMENT"  # else the id of one that was removed last is used again
POSTGRES_ID = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"


class UnusableDatabase(Exception):
    """This release cannot use the database; the text says why and what to do."""


def create_sqlite(db: sqlite3.Connection) -> None:
    """Create the tables where there are none. This writes in any case, so that whatever hinders writing is found out.

    Raises UnusableDatabase."""
    with db:
        db.execute("BEGIN IMMEDIATE")
        [version] = db.execute("PRAGMA user_version").fetchone()
        if not _has_tables(version):
            _create(db.execute, SQLITE_ID)
        db.execute(f"PRAGMA user_version = {VERSION}")


def _has_tables(version: int) -> bool:
    """Whether a database of this version has the tables; with 0 it has none. Raises UnusableDatabase."""
    if version not in (0, VERSION):
        raise UnusableDatabase(
            f"made by another release (its version is {version}, this release's is {VERSION}): run `flask export` with"
            " that release, then `flask import` into a new database with this one"
        )
    return version == VERSION


def _has_postgres_tables(connection: "psycopg.Connection[Any]") -> bool:
    if connection.info.server_version < OLDEST_POSTGRES:
        raise UnusableDatabase("PostgreSQL 14 or newer is needed")
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise UnusableDatabase(f"the database's encoding is {encoding}: create one with UTF8")
    if connection.execute("SELECT to_regclass('receiver')").fetchall() == [(None,)]:
        return False
    [[version]] = connection.execute("SELECT coalesce(max(version), 0) FROM receiver").fetchall()
    return _has_tables(version)


def create_postgres(connection: "psycopg.Connection[Any]") -> None:
    """Create the tables where there are none: one process does, others wait. Raises UnusableDatabase."""
    if _has_postgres_tables(connection):
        return
    with connection.transaction():
        connection.execute(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")
        # This also makes the server forget that it found no such table before it had the lock.
        connection.execute("CREATE TABLE IF NOT EXISTS receiver (version INTEGER NOT NULL)")
        if not _has_postgres_tables(connection):
            _create(connection.execute, POSTGRES_ID, 'COLLATE "C"')
            connection.execute(f"INSERT INTO receiver VALUES ({VERSION})")


def _create(execute: Callable[[str], Any], id: str, bytewise: str = "") -> None:
    """Create the tables through `execute`, in a transaction of the caller's.

    `id` is the database's identity column, `bytewise` what sorts a text by its bytes."""
    schema = re.sub(r"--.*", "", Path(__file__).with_name("schema.sql").read_text())
    for statement in filter(str.strip, schema.replace("{id}", id).replace("{bytewise}", bytewise).split(";")):
        execute(statement)
