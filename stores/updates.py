"""Updates: each is kept once, with a job for every handler it is given to and what it tells of its call."""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from schemas.status_update import StatusUpdate, dump
from schemas.strict_json import storable
from stores.calls import UPSERT_CALL, call_values
from stores.database import Database
from stores.records import Job, StoredUpdate

PAGE = 500

_KEEP = """INSERT INTO updates
    (call_id, status, received_at, kept_at, message, error_group, handlers, times, last_received_at)
  VALUES (:call_id, :status, :received_at, :now, :message, :error_group, :handlers, :times, :last_received_at)
  ON CONFLICT (call_id, status) DO NOTHING RETURNING id"""

_UPDATE = "u.id, u.call_id, u.status, u.received_at, u.kept_at, u.message, u.times, u.last_received_at, u.handlers"
_JOB = [field.name for field in fields(Job)]


def keep(
    db: Database,
    update: StatusUpdate,
    jobs: Collection[Job] = (),
    handlers: Iterable[str] | None = None,
    *,
    times: int = 1,
    last_received_at: float | None = None,
) -> int | None:
    """Atomically keep `update` with its `jobs`, and bring its call up to date. `handlers` are the names of those that
    it is given to; `times` and `last_received_at` tell how often the webhook received it.

    Returns the update's id, or None, with nothing done, where its (call.id, call.status) is kept already.
    """
    values = call_values(update) | {
        "now": db.now(),
        "message": json.dumps(dump(update)),
        "error_group": update.error_group,
        "handlers": None if handlers is None else json.dumps(list(handlers)),
        "times": times,
        "last_received_at": last_received_at or update.received_at.timestamp(),
    }
    for number, job in enumerate(jobs):
        values |= {f"{name}{number}": getattr(job, name) for name in _JOB}
    return db.chain(_KEEP, values, UPSERT_CALL, *map(_insert_job, range(len(jobs))))


def _insert_job(number: int) -> str:
    """The statement that adds a job of the update in `kept`, of all that are passed the one with this number."""
    names = ", ".join(f":{name}{number}" for name in _JOB)
    return f"INSERT INTO jobs (update_id, {', '.join(_JOB)}) SELECT id, {names} FROM kept"


def count_repeat(db: Database, update: StatusUpdate) -> None:
    """Atomically count that the webhook has received an update again that is kept already, and add to its call what it
    says beyond the first time."""
    db.chain(
        "UPDATE updates SET times = times + 1, last_received_at = :received_at"
        " WHERE call_id = :call_id AND status = :status RETURNING id",
        call_values(update) | {"updated_at": 0.0},  # it is no news
        UPSERT_CALL,
    )


def of_call(db: Database, call_id: str) -> list[StoredUpdate]:
    """A call's updates in the order they were kept, with their jobs."""
    return _stored(db, "call_id = :call_id", {"call_id": storable(call_id)})


def by_ids(db: Database, ids: Collection[int]) -> list[StoredUpdate]:
    """The updates with these ids that are still kept, with their jobs."""
    return _stored(db, f"id IN ({', '.join(map(str, ids))})", {}) if ids else []


def since(db: Database, moment: float = 0) -> Iterator[StoredUpdate]:
    """Every update kept at `moment` or later, in the order they were kept, read in pages: it holds nothing up."""
    values = {"after": 0, "moment": moment, "page": PAGE}
    while True:
        page = _stored(db, "id > :after AND kept_at >= :moment ORDER BY id LIMIT :page", values)
        yield from page
        if len(page) < PAGE:
            return
        values["after"] = page[-1].id


def count(db: Database) -> int:
    rows = db.query("SELECT count(*) FROM updates")
    return int(rows[0][0])


def last_id(db: Database) -> int:
    """The id of the update that was kept last, 0 where none is."""
    return int(db.query("SELECT coalesce(max(id), 0) FROM updates")[0][0])


def latest(db: Database) -> float | None:
    """When the update that was received last was."""
    rows = db.query("SELECT max(received_at) FROM updates")
    return None if rows[0][0] is None else float(rows[0][0])


def _stored(db: Database, where: str, values: Mapping[str, Any]) -> list[StoredUpdate]:
    rows = db.query(
        f"SELECT {_UPDATE}, {', '.join(_JOB)} FROM (SELECT * FROM updates WHERE {where}) AS u"
        " LEFT JOIN jobs ON update_id = u.id ORDER BY u.id, handler",
        values,
    )
    jobs: dict[tuple[Any, ...], list[Job]] = {}
    for row in rows:
        jobs.setdefault(row[:9], []).extend([Job(*row[9:])] if row[9] else [])
    return [
        StoredUpdate(*(*columns, names and tuple(json.loads(names)), tuple(its_jobs)))
        for (*columns, names), its_jobs in jobs.items()
    ]
