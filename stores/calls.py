"""Calls: what their updates tell of them together."""

from collections.abc import Collection
from dataclasses import fields
from math import inf
from typing import Any

from schemas.status_update import IN_PROGRESS, StatusUpdate, storable
from stores.database import Database
from stores.records import Call, Tally, hour_of

NO_LIMIT = 2**31 - 1
MAX_ERROR = 300  # characters; the update itself has all of them

COLUMNS = ", ".join(field.name for field in fields(Call))
_LASTED = "CASE WHEN ended_at >= started_at THEN ended_at - started_at END"  # `seconds`, from an index that has all
_DETAILS = ("type", "line", "line_name", "customer")
_FINAL = ("ended_at", "end_received_at", "error", "end_reason")
_ACTIVE = "start_received_at > :after AND start_received_at <= :until AND end_received_at IS NULL"

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
UPSERT_CALL = f"""INSERT INTO calls AS c (id, status, type, line, line_name, customer, received_at, started_at,
    start_received_at, ended_at, end_received_at, error, end_reason, hour, updated_at)
  SELECT :call_id, :status, :type, :line, :line_name, :customer, :received_at, :started_at, :start_received_at,
    :ended_at, :end_received_at, :error, :end_reason, :hour, :received_at FROM kept WHERE 1 = 1
  ON CONFLICT (id) DO UPDATE SET {", ".join(_SET)}"""


def call_values(update: StatusUpdate) -> dict[str, Any]:
    """What `update` tells of its call, by the names in UPSERT_CALL."""
    call, line, received_at = update.call, update.phone_number, update.received_at.timestamp()
    starts, timestamp = call.status == IN_PROGRESS, update.timestamp.timestamp()
    return {
        "call_id": call.id,
        "status": call.status,
        "type": _cut(call.type),
        "line": _cut(line.number),
        "line_name": line.name,
        "customer": _cut(update.customer.number),
        "received_at": received_at,
        "hour": hour_of(received_at),
        "started_at": timestamp if starts else None,
        "start_received_at": received_at if starts else None,
        "ended_at": timestamp if update.is_final else None,
        "end_received_at": received_at if update.is_final else None,
        "error": _cut(update.error, MAX_ERROR) if update.is_final else None,
        "end_reason": update.end_reason if update.is_final else None,
    }


def _cut(text: str | None, most: int = 64) -> str | None:
    """What a call has of a text that its sender may have made as long as they like: an index takes no more."""
    return text and text[:most]


def get(db: Database, call_id: str) -> Call | None:
    return next(iter(read(db, "id = :id", id=storable(call_id))), None)


def is_active(db: Database, call_id: str, after: float = 0) -> bool:
    """Whether a call has started, received after `after`, and not ended."""
    return bool(read(db, f"id = :id AND {_ACTIVE}", id=call_id, after=after, until=inf))


def active(db: Database, after: float = 0, until: float = inf, limit: int = NO_LIMIT) -> list[Call]:
    """The calls that have started and not ended, newest start received first: those whose start was received after
    `after` and no later than `until`."""
    newest = f"{_ACTIVE} ORDER BY start_received_at DESC, id LIMIT :limit"
    return read(db, newest, after=after, until=until, limit=limit)


def count_active(db: Database, after: float = 0, until: float = inf) -> int:
    """How many `active` finds without a limit."""
    return db.query(f"SELECT count(*) FROM calls WHERE {_ACTIVE}", {"after": after, "until": until})[0][0]


def tallies(db: Database, since: float, until: float = 2.0**53) -> list[tuple[str | None, str | None, Tally]]:
    """The calls first heard of from the hour that `since` is in until `until`, counted by hour, line, status and error:
    the line, the message of those that ended with an error ('' where it had none), and how many they are."""
    hours = {"since": hour_of(since), "last": int(until)}  # integers, as the index has
    failed = "CASE WHEN status = 'ended-with-error' THEN coalesce(error, '') END"
    found = db.query(
        f"SELECT line, {failed}, count(*), count({failed}), count({_LASTED}), coalesce(sum({_LASTED}), 0),"
        " max(received_at) FROM calls WHERE hour >= :since AND hour <= :last AND received_at < :until"
        " GROUP BY hour, line, status, error",
        hours | {"until": until},
    )
    return [(line, error, Tally(*counts)) for line, error, *counts in found]


def line_names(db: Database, lines: Collection[str]) -> dict[str, str]:
    """What each of these lines was last called, of those that have a name."""
    values = {f"line{number}": line for number, line in enumerate(lines)}
    latest = "SELECT line_name FROM calls WHERE line = l.line ORDER BY received_at DESC LIMIT 1"
    listed = " UNION ALL ".join(f"SELECT CAST(:{name} AS TEXT) AS line" for name in values)
    found = db.query(f"SELECT line, ({latest}) FROM ({listed}) AS l", values) if values else []
    return {line: name for line, name in found if name}


def count(db: Database) -> int:
    return int(db.query("SELECT count(*) FROM calls")[0][0])


def note_checked(db: Database, call_id: str, *, unknown: bool) -> None:
    """Note on the call that the provider was asked about it now, and whether it knew it."""
    values = {"now": db.now(), "unknown": int(unknown), "id": call_id}
    db.execute("UPDATE calls SET checked_at = :now, unknown = :unknown WHERE id = :id", values)


def read(db: Database, where: str, table: str = "calls", **values: Any) -> list[Call]:
    """The calls that `where` finds in `table`, or in a subquery."""
    found = db.query(f"SELECT {COLUMNS} FROM {table} WHERE {where}", values)
    return [Call(*row[:-1], bool(row[-1])) for row in found]
