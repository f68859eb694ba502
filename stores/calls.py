"""Calls: what their updates tell of them together."""

from math import inf
from typing import Any

from flask import current_app

from schemas.status_update import StatusUpdate
from schemas.statuses import ERRORS
from schemas.strict_json import storable
from stores import numbers
from stores.database import Database
from stores.records import CallRecord, Tally

FAILED_STATUS = f"status IN {ERRORS}"
_COUNTS = """count(*), count(seconds), coalesce(sum(seconds), 0), max(received_at) FROM calls
  WHERE received_at >= :since AND received_at < :until"""
_ACTIVE = "start_received_at > :after AND start_received_at <= :until AND end_received_at IS NULL"

# Whatever the order of a call's updates, the call is the same. Of those that end it the one with the earliest time
# stands, and with an error where two are equal; a time that could not be read is later than all others. Of a detail
# the least value stands, so that an update that comes again changes nothing, and one that says more adds it.
_ENDS = """(excluded.ended_at IS NOT NULL AND (c.ended_at IS NULL
  OR (excluded.ended_at_guessed, excluded.ended_at, -excluded.ended_with_error, excluded.status)
    < (c.ended_at_guessed, c.ended_at, -c.ended_with_error, c.status)))"""
_OF_THE_END = ("ended_at", "ended_at_guessed", "ended_with_error")
_TIMES = ("received_at", "started_at", "start_received_at", "end_received_at")
_DETAILS = (*_TIMES, "type", "line", "line_name", "customer", "error_text", "error_reason", "normal_reason")
_SET = [
    f"""status = CASE WHEN {_ENDS} THEN excluded.status WHEN c.ended_at IS NOT NULL THEN c.status
    WHEN excluded.started_at IS NOT NULL THEN excluded.status WHEN c.started_at IS NOT NULL THEN c.status
    WHEN (excluded.updated_at, excluded.status) > (c.updated_at, c.status) THEN excluded.status ELSE c.status END""",
    *(f"{name} = CASE WHEN {_ENDS} THEN excluded.{name} ELSE c.{name} END" for name in _OF_THE_END),
    *(f"{name} = CASE WHEN c.{name} IS NULL OR excluded.{name} < c.{name} THEN excluded.{name} ELSE c.{name} END"
      for name in _DETAILS),
    "digits = CASE WHEN c.customer IS NULL OR excluded.customer < c.customer THEN excluded.digits ELSE c.digits END",
    "updated_at = CASE WHEN excluded.updated_at > c.updated_at THEN excluded.updated_at ELSE c.updated_at END",
]  # fmt: skip
_COLUMNS = ("status", *_OF_THE_END, *_DETAILS, "digits", "updated_at")
UPSERT_CALL = f"""INSERT INTO calls AS c (id, {", ".join(_COLUMNS)})
  SELECT :call_id, {", ".join(f":{name}" for name in _COLUMNS)} FROM kept WHERE 1 = 1
  ON CONFLICT (id) DO UPDATE SET {", ".join(_SET)}"""


def call_values(update: StatusUpdate) -> dict[str, Any]:
    """What `update` tells of its call, by the names in UPSERT_CALL."""
    call, line, received_at = update.call, update.phone_number, update.received_at.timestamp()
    timestamp, failed = update.timestamp.timestamp(), update.ends_with_error
    ended_well, customer = update.is_final and not failed, update.customer.number
    return {
        "call_id": call.id,
        "status": call.status,
        "type": call.type,
        "line": line.number,
        "line_name": line.name,
        "customer": customer,
        "digits": numbers.digits(customer or "") or None,
        "received_at": received_at,
        "started_at": timestamp if update.starts else None,
        "start_received_at": received_at if update.starts else None,
        "ended_at": timestamp if update.is_final else None,
        "ended_at_guessed": int(update.is_final and not update.timestamp_known),
        "end_received_at": received_at if update.is_final else None,
        "ended_with_error": int(failed),
        "error_text": (update.error or None) if failed else None,
        "error_reason": update.end_reason if failed else None,
        "normal_reason": update.end_reason if ended_well else None,
        "updated_at": received_at,
    }


def get(db: Database, call_id: str) -> CallRecord | None:
    return next(iter(read(db, "id = :id", id=storable(call_id))), None)


def is_active(db: Database, call_id: str, after: float = 0) -> bool:
    """Whether a call has started, received after `after`, and not ended."""
    return bool(read(db, f"id = :id AND {_ACTIVE}", id=call_id, after=after, until=inf))


def active(db: Database, after: float = 0, until: float = inf, limit: int = 2**31 - 1) -> list[CallRecord]:
    """The calls that have started and not ended, newest start received first: those whose start was received after
    `after` and no later than `until`."""
    newest = f"{_ACTIVE} ORDER BY start_received_at DESC, id LIMIT :limit"
    return read(db, newest, after=after, until=until, limit=limit)


def count_active(db: Database, after: float = 0, until: float = inf) -> int:
    """How many `active` finds without a limit."""
    return int(db.query(f"SELECT count(*) FROM calls WHERE {_ACTIVE}", {"after": after, "until": until})[0][0])


def tallies(db: Database, since: float, until: float = inf) -> list[Tally]:
    """The calls that were first heard of from `since` until `until`, counted by line and error."""
    groups = f"line, max(line_name), CASE WHEN {FAILED_STATUS} THEN coalesce(error, '') END"
    rows = db.query(f"SELECT {groups}, {_COUNTS} GROUP BY 1, 3", {"since": since, "until": until})
    return [Tally(*row) for row in rows]


def totals(db: Database, since: float, until: float) -> list[Tally]:
    """The same for all lines together: those without an error and those with one. Nothing is sorted for that."""
    others = f"SELECT NULL, NULL, NULL, {_COUNTS} AND NOT {FAILED_STATUS}"
    failed = f"SELECT NULL, NULL, '', {_COUNTS} AND {FAILED_STATUS}"
    rows = db.query(f"{others} UNION ALL {failed}", {"since": since, "until": until})
    return [Tally(*row) for row in rows]


def stale_at(db: Database) -> float:
    """A call that goes on, and whose start was received then or before, is stale."""
    return db.now() - float(current_app.config["STALE_AFTER"])


def count(db: Database) -> int:
    return int(db.query("SELECT count(*) FROM calls")[0][0])


def note_checked(db: Database, call_id: str, *, unknown: bool) -> None:
    """Note on the call that the provider was asked about it now, and whether it knew it."""
    values = {"now": db.now(), "unknown": int(unknown), "id": call_id}
    db.execute("UPDATE calls SET checked_at = :now, unknown = :unknown WHERE id = :id", values)


def read(db: Database, where: str, **values: Any) -> list[CallRecord]:
    """The calls that `where` finds."""
    rows = db.query(f"SELECT {', '.join(CallRecord._fields)} FROM calls WHERE {where}", values)
    return [CallRecord(*row) for row in rows]
