"""Calls: what their updates tell of them together."""

from math import inf
from typing import Any

from schemas.status_update import IN_PROGRESS, StatusUpdate, storable
from stores import Database
from stores.records import Call, HourlyCount

ALL = 2**31 - 1

_CALL = (
    "id, status, type, line, line_name, customer, received_at, started_at, start_received_at, ended_at,"
    " end_received_at, error, end_reason, seconds, checked_at, unknown"
)
_DETAILS = ("type", "line", "line_name", "customer")
_FINAL = ("ended_at", "end_received_at", "error", "end_reason")
_ACTIVE = "start_received_at IS NOT NULL AND end_received_at IS NULL"

# Of two final updates the one received first stands. Of several values of a detail, the first in the alphabet does:
# so the call is the same in whatever order its updates come.
_ENDS = """(excluded.end_received_at IS NOT NULL AND (c.end_received_at IS NULL
  OR (excluded.end_received_at, excluded.status) < (c.end_received_at, c.status)))"""
_NEWER = "(excluded.updated_at, excluded.status) > (c.updated_at, c.status)"
_SET = [
    f"""status = CASE WHEN {_ENDS} THEN excluded.status WHEN c.end_received_at IS NOT NULL THEN c.status
    WHEN excluded.start_received_at IS NOT NULL THEN excluded.status WHEN c.start_received_at IS NOT NULL THEN c.status
    WHEN {_NEWER} THEN excluded.status ELSE c.status END""",
    *(f"{name} = CASE WHEN {_ENDS} THEN excluded.{name} ELSE c.{name} END" for name in _FINAL),
    *(f"{name} = coalesce(c.{name}, excluded.{name})" for name in ("started_at", "start_received_at")),
    *(f"{name} = CASE WHEN c.{name} IS NULL OR excluded.{name} < c.{name} THEN excluded.{name} ELSE c.{name} END"
      for name in _DETAILS),
    *(f"{name} = CASE WHEN excluded.{name} < c.{name} THEN excluded.{name} ELSE c.{name} END"
      for name in ("received_at", "hour")),
    "updated_at = CASE WHEN excluded.updated_at > c.updated_at THEN excluded.updated_at ELSE c.updated_at END",
]  # fmt: skip
TRACK = f"""INSERT INTO calls AS c (id, status, type, line, line_name, customer, received_at, started_at,
    start_received_at, ended_at, end_received_at, error, end_reason, hour, updated_at)
  SELECT :call_id, :status, :type, :line, :line_name, :customer, :received_at, :started_at, :start_received_at,
    :ended_at, :end_received_at, :error, :end_reason, :hour, :received_at FROM kept WHERE 1 = 1
  ON CONFLICT (id) DO UPDATE SET {", ".join(_SET)}"""


def call_values(update: StatusUpdate) -> dict[str, Any]:
    """What `update` tells of its call, by the names in TRACK."""
    call, line, received_at = update.call, update.phone_number, update.received_at.timestamp()
    starts, timestamp = call.status == IN_PROGRESS, update.timestamp.timestamp()
    return {
        "call_id": call.id,
        "status": call.status,
        "type": call.type,
        "line": line.number,
        "line_name": line.name,
        "customer": update.customer.number,
        "received_at": received_at,
        "hour": int(received_at // 3600) * 3600,
        "started_at": timestamp if starts else None,
        "start_received_at": received_at if starts else None,
        "ended_at": timestamp if update.is_final else None,
        "end_received_at": received_at if update.is_final else None,
        "error": update.error if update.is_final else None,
        "end_reason": update.end_reason if update.is_final else None,
    }


def get(db: Database, call_id: str) -> Call | None:
    return next(iter(_calls(db, "id = :id", id=storable(call_id))), None)


def is_active(db: Database, call_id: str, after: float = 0) -> bool:
    """Whether a call has started, received after `after`, and not ended."""
    where = f"id = :id AND {_ACTIVE} AND start_received_at > :after"
    return bool(db.query(f"SELECT 1 FROM calls WHERE {where}", {"id": call_id, "after": after}))


def active(db: Database, after: float = 0, until: float = inf, limit: int = ALL) -> list[Call]:
    """The calls that have started and not ended, newest start received first: those whose start was received after
    `after` and no later than `until`."""
    where = f"{_ACTIVE} AND start_received_at > :after AND start_received_at <= :until"
    order = "ORDER BY start_received_at DESC, id LIMIT :limit"
    return _calls(db, f"{where} {order}", after=after, until=until, limit=limit)


def count_active(db: Database, after: float = 0, until: float = inf) -> int:
    """How many `active` finds without a limit."""
    where = f"{_ACTIVE} AND start_received_at > :after AND start_received_at <= :until"
    return db.query(f"SELECT count(*) FROM calls WHERE {where}", {"after": after, "until": until})[0][0]


def recent(db: Database, limit: int, search: str = "") -> list[Call]:
    """The calls heard of last, newest first; with `search`, those with that id or customer's number."""
    where = "id = :search OR customer = :search" if search else "1 = 1"
    return _calls(db, f"{where} ORDER BY received_at DESC, id DESC LIMIT :limit", search=storable(search), limit=limit)


def hourly(db: Database, since: float) -> list[HourlyCount]:
    """What happened by hour, status and error, from the hour that `since` is in."""
    found = db.query(
        "SELECT hour, status, coalesce(error, ''), count(*), count(seconds), coalesce(sum(seconds), 0), max(updated_at)"
        " FROM calls WHERE hour >= :since GROUP BY hour, status, coalesce(error, '')",
        {"since": int(since // 3600) * 3600},  # an integer, as the index has
    )
    return [HourlyCount(*row) for row in found]


def note_checked(db: Database, call_id: str, *, unknown: bool) -> None:
    """Note on the call that the provider was asked about it now, and whether it knew it."""
    values = {"now": db.now(), "unknown": int(unknown), "id": call_id}
    db.execute("UPDATE calls SET checked_at = :now, unknown = :unknown WHERE id = :id", values)


def _calls(db: Database, where: str, **values: Any) -> list[Call]:
    found = db.query(f"SELECT {_CALL} FROM calls WHERE {where}", values)
    return [Call(*row[:-1], bool(row[-1])) for row in found]
