"""Updates: each is kept once, with a job for every handler and what it tells of its call."""

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from schemas.status_update import StatusUpdate, dump, storable
from stores.calls import UPSERT_CALL, call_values
from stores.database import Database
from stores.records import Job, StoredUpdate

PAGE = 500

_KEEP = """INSERT INTO updates (call_id, status, received_at, kept_at, message, error_group)
  VALUES (:call_id, :status, :received_at, :now, :message, :error_group)
  ON CONFLICT (call_id, status) DO NOTHING RETURNING id"""

_UPDATE = "u.id, u.call_id, u.status, u.received_at, u.kept_at, u.message"
_JOB = "handler, state, due_at, attempts, first_tried_at, error, done_at"


def record(
    db: Database, update: StatusUpdate, handlers: Iterable[str], lease: float | None = None, failed: Iterable[str] = ()
) -> int | None:
    """Atomically keep `update` with a job for each of `handlers`, and bring its call up to date.

    The jobs are leased until `lease`, or else due now; those of `failed` have failed. Returns the update's id, or None,
    with nothing done, where its (call.id, call.status) is kept already.
    """
    now = db.now()
    jobs = dict.fromkeys(failed, "failed") | dict.fromkeys(handlers, "leased" if lease else "pending")
    values = call_values(update) | {
        "now": now,
        "message": json.dumps(dump(update)),
        "error_group": update.error_group,
        "due_at": lease or now,
    }
    values |= {f"handler{number}": handler for number, handler in enumerate(jobs)}
    return db.chain(_KEEP, values, UPSERT_CALL, *_insert_jobs(*jobs.values()))


@functools.lru_cache
def _insert_jobs(*states: str) -> tuple[str, ...]:
    """The statement that adds the jobs of the update in `kept`, `:handler0` in the first of `states` and so on."""
    due = {"failed": "CAST(NULL AS DOUBLE PRECISION)"}
    jobs = [
        f"SELECT id, :handler{number}, '{state}', {due.get(state, ':due_at')} FROM kept"
        for number, state in enumerate(states)
    ]
    return (f"INSERT INTO jobs (update_id, handler, state, due_at) {' UNION ALL '.join(jobs)}",) if jobs else ()


def of_call(db: Database, call_id: str) -> list[StoredUpdate]:
    """A call's updates in the order they were kept, with their jobs."""
    return _stored(db, "call_id = :call_id", {"call_id": storable(call_id)})


def by_id(db: Database, update_id: int) -> StoredUpdate | None:
    """An update with its jobs; None where it is not kept any more."""
    return next(iter(_stored(db, "id = :id", {"id": update_id})), None)


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
    return db.query("SELECT count(*) FROM updates")[0][0]


def latest(db: Database) -> float | None:
    """When the update that was received last was."""
    return db.query("SELECT max(received_at) FROM updates")[0][0]


def _stored(db: Database, where: str, values: Mapping[str, Any]) -> list[StoredUpdate]:
    found = db.query(
        f"SELECT {_UPDATE}, {_JOB} FROM (SELECT * FROM updates WHERE {where}) AS u"
        " LEFT JOIN jobs ON update_id = u.id ORDER BY u.id, handler",
        values,
    )
    jobs: dict[tuple, list[Job]] = {}
    for row in found:
        jobs.setdefault(row[:6], []).extend([Job(*row[6:])] if row[6] else [])
    return [StoredUpdate(*update, tuple(each)) for update, each in jobs.items()]
