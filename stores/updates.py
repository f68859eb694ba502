"""Updates: each is kept once, with a job for every handler it is given to and what it tells of its call."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import fields
from itertools import groupby
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

_UPDATE = [name for name in StoredUpdate._fields if name != "jobs"]
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
    return read(db, "call_id = :call_id", call_id=storable(call_id))


def since(db: Database, moment: float = 0) -> Iterator[StoredUpdate]:
    """Every update kept at `moment` or later, in the order they were kept, read in pages: it holds nothing up."""
    page, after = "id > :after AND kept_at >= :moment ORDER BY id LIMIT :limit", 0
    while rows := read(db, page, after=after, moment=moment, limit=PAGE):
        yield from rows
        after = rows[-1].id


def count(db: Database) -> int:
    return int(db.query("SELECT count(*) FROM updates")[0][0])


def last_id(db: Database) -> int:
    """The id of the update that was kept last, 0 where none is."""
    return int(db.query("SELECT coalesce(max(id), 0) FROM updates")[0][0])


def latest(db: Database) -> float | None:
    """When the update that was received last was."""
    received_at: float | None = db.query("SELECT max(received_at) FROM updates")[0][0]
    return received_at


def read(db: Database, where: str, **values: Any) -> list[StoredUpdate]:
    """The updates that `where` finds, in the order they were kept, with their jobs."""
    rows = db.query(
        f"SELECT {', '.join(f'u.{name}' for name in _UPDATE)}, {', '.join(_JOB)}"
        f" FROM (SELECT * FROM updates WHERE {where}) AS u LEFT JOIN jobs ON update_id = u.id ORDER BY u.id, handler",
        values,
    )
    stored_updates = []
    for (*columns, handlers), its_rows in groupby(rows, lambda row: row[: len(_UPDATE)]):
        jobs = tuple(Job(*row[len(_UPDATE) :]) for row in its_rows if row[len(_UPDATE)])
        stored_updates.append(StoredUpdate._make([*columns, handlers and tuple(json.loads(handlers)), jobs]))
    return stored_updates
