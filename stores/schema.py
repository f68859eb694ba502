"""The tables and their version. There are no upgrades: a database of another version is refused."""

from pathlib import Path

VERSION = 3
TABLES = Path(__file__).with_name("schema.sql").read_text()
# An id is not used again when the one that was given last is removed.
SQLITE_TABLES = TABLES.format(id="INTEGER PRIMARY KEY AUTOINCREMENT", bytewise="")
POSTGRES_TABLES = TABLES.format(id="BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", bytewise='COLLATE "C"')


class UnusableDatabase(Exception):
    """This release cannot use the database; the text says why and what to do."""


def check_version(version: int) -> None:
    """Raises UnusableDatabase where the tables were made by another release. With 0 there are none."""
    if version not in (0, VERSION):
        raise UnusableDatabase(
            f"made by another release (its version is {version}, this release's is {VERSION}): run `flask export` with"
            " that release, then `flask import` into a new database with this one"
        )
