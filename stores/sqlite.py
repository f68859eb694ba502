"""SQLite: one file, many readers, and one writer at a time in all threads and processes.

An update is on the disk once it is recorded, so that what is acknowledged survives a loss of power. What handlers have
done since may not be: the jobs are there again, and they are called again.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stores import Execute, Rows
from stores.sqlite_file import SQLiteFile

BYTES_AN_UPDATE = 700  # of the file, settled, of a call with two; measured
FEW = 1_000_000


class SQLite(SQLiteFile):
    """The contract is in `stores.Database`."""

    name = "sqlite"
    skip_locked = ""
    spool = None

    def __init__(self, path: str, clock: Callable[[], float] | None = None):
        super().__init__(path)
        self.now = clock or time.time
        self.durability = f"{path}: what is acknowledged survives a loss of power, as long as the disk is kept"

    def query(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        with self.read() as db:
            return db.execute(sql, values).fetchall()

    def execute(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        with self.write() as db:
            return db.execute(sql, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self.write(durable=True) as db:
            yield lambda sql, values={}: db.execute(sql, values).fetchall()

    def insert(self, sql: str, values: Mapping[str, Any], *more: str) -> int | None:
        with self.write(durable=True) as db:  # a repeat waits for the disk, too: what it repeats may not be there yet
            inserted: tuple[int] | None = db.execute(sql, values).fetchone()
            if inserted is None:
                return None
            for statement in more:
                db.execute(f"WITH kept AS (SELECT :kept_id AS id) {statement}", {**values, "kept_id": inserted[0]})
            return inserted[0]

    def check(self) -> None:
        with self.write(durable=True) as db:
            db.execute("INSERT INTO locks VALUES ('check', 0) ON CONFLICT (name) DO UPDATE SET until = excluded.until")

    def advice(self) -> list[str]:
        if not os.path.exists(self.path):
            return []
        left = shutil.disk_usage(self.path.parent).free // BYTES_AN_UPDATE
        return [f"About {left:,} more updates fit onto this disk."] if left < FEW else []

    def probe(self) -> None:
        """Nothing is needed: what failed is opened afresh by the next verb."""

    def failure(self) -> str:
        return ""
