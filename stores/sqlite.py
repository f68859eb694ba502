"""The store in one SQLite file.

Updates are on the disk once they are recorded, so that what is acknowledged survives a loss of power. What handlers
have done since may not be: the rows are there again, and they are called again.
"""

import json
import os
import re
import shutil
import sqlite3
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from schemas.status_update import StatusUpdate, dump
from stores.records import Backlog, CallState, Kept, Refused, Row
from stores.sqlite_calls import SQLiteCalls
from stores.sqlite_claims import SQLiteClaims

PAGE = 500
BYTES_AN_UPDATE = 700  # of the file, settled, of a call with two; measured
FEW = 1_000_000

_ROW = "handler, due, attempts, first_tried, error"


class SQLiteStore(SQLiteCalls, SQLiteClaims):
    """The contract is in `stores.Store`."""

    name = "sqlite"

    def record(
        self,
        update: StatusUpdate,
        pending: Iterable[str],
        due: float,
        *,
        now: float,
        leased: bool = True,
        failed: Iterable[str] = (),
    ) -> bool:
        key = (update.call.id, update.call.status)
        received_at = update.received_at.timestamp()
        rows = [(*key, name, due, leased, received_at) for name in pending]
        rows += [(*key, name, None, False, received_at) for name in failed]
        with self.write(durable=True) as db:
            added = db.execute(
                "INSERT INTO updates (call_id, status, received_at, kept_at, message, alike) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT DO NOTHING",
                (*key, received_at, now, json.dumps(dump(update)), update.alike),
            ).rowcount
            if not added:
                return False
            if rows:
                db.execute(
                    "INSERT INTO rows (call_id, status, handler, due, leased, received_at)"
                    f" VALUES {_marks(rows, '(?, ?, ?, ?, ?, ?)')}",
                    [value for row in rows for value in row],
                )
            self._track(db, update)
        self._tracked.last = update
        return True

    def settle(self, update: StatusUpdate, lease: float, done: Iterable[str], failures: Iterable[Row]) -> None:
        key, done = (update.call.id, update.call.status), list(done)
        with self.write() as db:
            db.execute(
                f"DELETE FROM rows WHERE call_id = ? AND status = ? AND handler IN ({_marks(done)})", (*key, *done)
            )
            for row in failures:
                db.execute(
                    "UPDATE rows SET due = ?, leased = 0, attempts = ?, first_tried = ?, error = ?"
                    " WHERE (call_id, status, handler, due) = (?, ?, ?, ?)",
                    (row.due, row.attempts, row.first_tried, row.error, *key, row.handler, lease),
                )

    def take(self, handler: str, now: float, lease: float) -> tuple[Kept, Row] | None:
        with self.write() as db:
            row = db.execute(
                "UPDATE rows SET due = ?, leased = 1 WHERE (call_id, status, handler) ="
                " (SELECT call_id, status, handler FROM rows WHERE handler = ? AND due <= ? ORDER BY due LIMIT 1)"
                f" RETURNING call_id, status, {_ROW}",
                (lease, handler, now),
            ).fetchone()
            if row is None:
                return None
            call_id, status, *rest = row
            update = db.execute(
                "SELECT call_id, status, received_at, kept_at, message FROM updates WHERE call_id = ? AND status = ?",
                (call_id, status),
            ).fetchone()
        return Kept(*update), Row(*rest)

    def hurry(self, now: float, *, failed: bool = False, call_id: str | None = None, handler: str | None = None) -> int:
        due = "(due IS NULL OR NOT leased)" if failed else "due IS NOT NULL AND NOT leased"
        with self.write() as db:
            return db.execute(
                "UPDATE rows SET attempts = iif(due IS NULL, 0, attempts),"
                " first_tried = iif(due IS NULL, NULL, first_tried), due = ?1"
                f" WHERE {due} AND call_id = coalesce(?2, call_id) AND handler = coalesce(?3, handler)",
                (now, call_id, handler),
            ).rowcount

    def call(self, call_id: str) -> tuple[CallState | None, list[Kept]]:
        calls = self._calls("id = ?", call_id)
        with self.read() as db:
            return calls[0] if calls else None, [*self._kept(db, "call_id = ?", call_id).values()]

    def updates(self, since: float = 0) -> Iterator[Kept]:
        last = (since, -1)
        while True:
            with self.read() as db:
                page = self._kept(db, "(kept_at, id) > (?, ?) ORDER BY kept_at, id LIMIT ?", *last, PAGE)
            yield from page.values()
            if len(page) < PAGE:
                return
            id, kept = page.popitem()
            last = (kept.kept_at, id)

    def backlog(self) -> list[Backlog]:
        with self.read() as db:
            found = db.execute(
                "SELECT handler, count(due), count(*) - count(due), min(iif(due IS NULL, NULL, received_at)),"
                " (SELECT error FROM rows AS r WHERE r.handler = rows.handler AND error NOT NULL ORDER BY due DESC)"
                " FROM rows GROUP BY handler"
            )
            return [Backlog(*row) for row in found]

    def count_refusals(self, refused: Iterable[Refused]) -> None:
        with self.write() as db:
            db.executemany(
                "INSERT INTO refusals VALUES (CAST(?3 / 3600 AS INTEGER) * 3600, ?1, ?2, ?3) ON CONFLICT DO UPDATE"
                " SET times = times + excluded.times, latest = max(latest, excluded.latest)",
                [(each.reason, each.times, each.latest) for each in refused],
            )

    def refusals(self, since: float) -> list[Refused]:
        with self.read() as db:
            found = db.execute(
                "SELECT reason, sum(times), max(latest) FROM refusals WHERE hour >= ? GROUP BY reason ORDER BY 2 DESC",
                (since - since % 3600,),
            )
            return [Refused(*row) for row in found]

    def check(self) -> float | None:
        with self.write(durable=True) as db:
            db.execute("PRAGMA user_version = 1")  # writes a page, as an update would
            return db.execute("SELECT max(received_at) FROM updates").fetchone()[0]

    def advice(self) -> list[str]:
        if not os.path.exists(self.path):
            return []
        left = shutil.disk_usage(self.path.parent).free // BYTES_AN_UPDATE
        return [f"About {left:,} more updates fit onto this disk."] if left < FEW else []

    def drain(self, now: float) -> None:
        """This store has no spool."""

    def spooled(self) -> tuple[int, str]:
        return 0, ""

    def forget(self, number: str) -> dict[str, int]:
        # An id contains the number unless it only contains a longer one. No id is empty.
        in_ids = (f"*{number}", f"*{number}[^0-9]*") if re.search(r"[0-9]{6}\Z", number) else ("", "")
        ids = (
            "SELECT id FROM calls WHERE customer = ?1 OR id GLOB ?2 OR id GLOB ?3 UNION SELECT call_id FROM updates"
            " WHERE message ->> '$.message.customer.number' = ?1 OR call_id GLOB ?2 OR call_id GLOB ?3"
        )
        with self.write(durable=True) as db:
            found = db.execute(ids, (number, *in_ids)).fetchall()

            def delete(table: str, column: str) -> int:
                return db.executemany(f"DELETE FROM {table} WHERE {column} = ?", found).rowcount if found else 0

            return {
                "calls": delete("calls", "id"),
                "updates": delete("updates", "call_id"),
                "rows": delete("rows", "call_id"),
            }

    def prune(self, before: float, limit: int) -> tuple[int, int]:
        with self.write() as db:
            keys = db.execute(
                "DELETE FROM updates WHERE id IN (SELECT id FROM updates AS u WHERE received_at < ? AND NOT EXISTS"
                " (SELECT * FROM rows WHERE (call_id, status) = (u.call_id, u.status) AND due NOT NULL)"
                " ORDER BY received_at LIMIT ?) RETURNING call_id, status",
                (before, limit),
            ).fetchall()
            db.executemany("DELETE FROM rows WHERE (call_id, status) = (?, ?)", keys)
            calls = db.execute(
                "DELETE FROM calls WHERE id IN (SELECT id FROM calls AS c WHERE received_at < ? AND NOT EXISTS"
                " (SELECT * FROM updates WHERE call_id = c.id) ORDER BY received_at LIMIT ?)",
                (before, limit),
            ).rowcount
            db.execute("DELETE FROM figures WHERE calls = 0")
            db.execute("DELETE FROM refusals WHERE hour <= ?", (before - 3600,))
            db.execute("DELETE FROM reports WHERE reported_at < ? AND leased_until < ?", (before, before))
        return len(keys), calls

    @staticmethod
    def _kept(db: sqlite3.Connection, where: str, *values: str | float) -> dict[int, Kept]:
        """The updates that `where` tells, by their ids, in the order they were kept."""
        found = db.execute(
            f"SELECT u.id, u.call_id, u.status, u.received_at, u.kept_at, u.message, {_ROW}"
            f" FROM (SELECT * FROM updates WHERE {where}) AS u LEFT JOIN rows USING (call_id, status)"
            " ORDER BY u.kept_at, u.id",
            values,
        )
        updates: dict[tuple, list[Row]] = {}
        for record in found:
            rows = updates.setdefault(record[:6], [])
            if record[6]:
                rows.append(Row(*record[6:]))
        return {id: Kept(*update, tuple(rows)) for (id, *update), rows in updates.items()}


def _marks(values: Collection[Any], mark: str = "?") -> str:
    """A statement's place for each of `values`: one statement costs less than one for each."""
    return ", ".join([mark] * len(values))
