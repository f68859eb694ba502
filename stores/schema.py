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
        if version:
            _check_version(version)
        else:
            _create(db.execute, SQLITE_ID)
        db.execute(f"PRAGMA user_version = {VERSION}")


def create_postgres(connection: "psycopg.Connection[Any]") -> None:
    """Create the tables where there are none: one process does, others wait. Raises UnusableDatabase."""
    if connection.info.server_version < OLDEST_POSTGRES:
        raise UnusableDatabase("PostgreSQL 14 or newer is needed")
    if (encoding := connection.info.parameter_status("server_encoding")) != "UTF8":
        raise UnusableDatabase(f"the database's encoding is {encoding}: create one with UTF8")
    with connection.transaction():
        connection.execute(f"SELECT pg_advisory_xact_lock({POSTGRES_LOCK})")
        if connection.execute("SELECT to_regclass('receiver')").fetchall() != [(None,)]:
            [[version]] = connection.execute("SELECT max(version) FROM receiver").fetchall()
            _check_version(version)
        else:
            _create(connection.execute, POSTGRES_ID, 'COLLATE "C"')
            connection.execute(f"CREATE TABLE receiver AS SELECT {VERSION} AS version")


def _check_version(version: int) -> None:
    if version != VERSION:
        raise UnusableDatabase(
            f"made by another release (its version is {version}, this release's is {VERSION}): run `flask export` with"
            " that release, then `flask import` into a new database with this one"
        )


def _create(execute: Callable[[str], Any], id: str, bytewise: str = "") -> None:
    """Create the tables through `execute`, in a transaction of the caller's.

    `id` is the database's identity column, `bytewise` what sorts a text by its bytes."""
    schema = re.sub(r"--.*", "", Path(__file__).with_name("schema.sql").read_text())
    for statement in filter(str.strip, schema.replace("{id}", id).replace("{bytewise}", bytewise).split(";")):
        execute(statement)
