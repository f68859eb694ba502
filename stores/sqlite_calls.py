"""Calls in the SQLite file. The statements give the same call in whatever order its updates come."""

import sqlite3
from math import inf

from schemas.status_update import IN_PROGRESS, StatusUpdate
from stores.records import CallState, Figures, Tracked
from stores.sqlite_file import SQLiteFile

_CALL = (
    "id, status, type, line, line_name, customer, received_at,"
    " started_at, start_received_at, ended_at, end_received_at, error, end_reason"
)
_INSERT = f"INSERT INTO calls ({_CALL}) VALUES ({', '.join('?' * 13)}) ON CONFLICT DO UPDATE SET"
_START_CALL = f"""{_INSERT} status = iif(end_received_at IS NULL, excluded.status, status),
  received_at = min(received_at, excluded.received_at),
  started_at = excluded.started_at, start_received_at = excluded.start_received_at WHERE start_received_at IS NULL"""
_END_CALL = f"""{_INSERT} status = excluded.status, received_at = min(received_at, excluded.received_at),
  ended_at = excluded.ended_at, end_received_at = excluded.end_received_at, error = excluded.error,
  end_reason = excluded.end_reason WHERE end_received_at IS NULL OR end_received_at > excluded.end_received_at"""
_MENTION_CALL = f"{_INSERT} received_at = excluded.received_at WHERE received_at > excluded.received_at"
_ACTIVE = """start_received_at IS NOT NULL AND end_received_at IS NULL
  AND start_received_at > ? AND start_received_at <= ?"""


class SQLiteCalls(SQLiteFile):
    """The contract is in `stores.Store`."""

    def __init__(self, path: str):
        super().__init__(path)
        self._tracked = Tracked()

    def track(self, update: StatusUpdate) -> None:
        if update is not self._tracked.last:
            with self.write() as db:
                self._track(db, update)

    def _track(self, db: sqlite3.Connection, update: StatusUpdate) -> None:
        call, line = update.call, update.phone_number
        times = update.timestamp.timestamp(), update.received_at.timestamp()
        started, ended, why = (None, None), (None, None), (None, None)
        statement = _MENTION_CALL
        if call.status == IN_PROGRESS:
            statement, started = _START_CALL, times
        elif update.is_final:
            statement, ended, why = _END_CALL, times, (update.error, update.end_reason)
        known = (call.id, call.status, call.type, line.number, line.name, update.customer.number, times[1])
        db.execute(statement, known + started + ended + why)

    def note_asked(self, call_id: str, now: float, *, unknown: bool) -> None:
        with self.write() as db:
            db.execute("UPDATE calls SET asked_at = ?, unknown = ? WHERE id = ?", (now, unknown, call_id))

    def active(self, after: float = 0, until: float = inf, limit: int = -1) -> list[CallState]:
        return self._calls(f"{_ACTIVE} ORDER BY start_received_at DESC LIMIT ?", after, until, limit)

    def count_active(self, after: float = 0, until: float = inf) -> int:
        with self.read() as db:
            return db.execute(f"SELECT count(*) FROM calls WHERE {_ACTIVE}", (after, until)).fetchone()[0]

    def recent(self, limit: int, search: str = "") -> list[CallState]:
        if not search:
            return self._calls("1 ORDER BY received_at DESC LIMIT ?", limit)
        return self._calls("id = ? OR customer = ? ORDER BY received_at DESC LIMIT ?", search, search, limit)

    def figures(self, since: float) -> list[Figures]:
        with self.read() as db:
            found = db.execute("SELECT * FROM figures WHERE hour >= ? AND calls > 0", (since - since % 3600,))
            return [Figures(*row) for row in found]

    def _calls(self, where: str, *values: str | float) -> list[CallState]:
        with self.read() as db:
            found = db.execute(f"SELECT {_CALL}, asked_at, unknown FROM calls WHERE {where}", values)
            return [CallState(*row[:-1], bool(row[-1])) for row in found]
