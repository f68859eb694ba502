"""What the store's verbs need of a database; `sqlite` and `postgres` are the two."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

Rows = list[tuple[Any, ...]]
Execute = Callable[..., Rows]


def marks(values: Iterable[Any]) -> tuple[str, dict[str, Any]]:
    """A list for a statement's IN, and its parameters. One that is empty finds nothing."""
    parameters = {f"value{number}": value for number, value in enumerate(values)}
    return f"({', '.join([*(f':{name}' for name in parameters), 'NULL'])})", parameters


class Database(Protocol):
    """What the verbs need of a database. Parameters are named in the SQL, as `:name`."""

    name: str
    now: Callable[[], float]  # the time that everybody who uses this database compares leases with
    durability: str  # what an acknowledged update survives, in a few words
    skip_locked: str = ""  # what ends a SELECT of rows that are about to be changed
    path: Path = Path()  # of its file, where it is one
    spool: "Database | None" = None  # the file that updates go to while this database cannot take them
    failure: str = ""  # why this database is not used; empty while it is

    def query(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        """What a SELECT finds."""

    def execute(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        """Run one statement atomically. Returns what its RETURNING does."""

    def transaction(self) -> AbstractContextManager[Execute]:
        """Several statements, atomically: `with db.transaction() as execute`. Any exception undoes them."""

    def chain(self, sql: str, values: Mapping[str, Any], *more: str) -> int | None:
        """Atomically run a statement that returns an id and, where it does, the statements in `more`, which find the id
        as the only row of `kept`. Durable once this returns the id, or None where nothing was changed."""

    def probe(self) -> None:
        """Try again to reach a database that failed, for a second. Raises StoreError while it cannot be used."""
        return None  # a file is tried again by each verb

    def close(self) -> None:
        """Let go of every connection and file; the next verb opens them again."""

    def check(self) -> None:
        """Write something. Raises StoreError if an update could not be kept now."""
        self.execute("INSERT INTO locks VALUES ('check', 0) ON CONFLICT (name) DO UPDATE SET until = excluded.until")
