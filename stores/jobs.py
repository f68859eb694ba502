"""Jobs: one handler's work on one update, which is pending, leased, done or failed.

A lease's end is its fencing token: success always ends the job, failure is written only by who still has the lease.
"""

from collections.abc import Collection, Iterable
from dataclasses import asdict
from typing import Any

from schemas.status_update import StatusUpdate
from schemas.strict_json import storable
from stores import updates
from stores.database import Database, Execute
from stores.records import Backlog, Change, Job, StoredUpdate


def settle(db: Database, changes: Collection[Change]) -> None:
    """Write what became of jobs that were leased. Once all of it is written, writing it again changes nothing."""
    if at_once := [change for change in changes if change.at_once]:
        names = {f"handler{number}": change.job.handler for number, change in enumerate(at_once)}
        ids = ", ".join(str(change.update_id) for change in at_once)  # for the index: SQLite takes none for pairs
        rows = ", ".join(f"({change.update_id}, :handler{number})" for number, change in enumerate(at_once))
        db.execute(f"DELETE FROM jobs WHERE update_id IN ({ids}) AND (update_id, handler) IN (VALUES {rows})", names)
    if others := [change for change in changes if not change.at_once]:
        with db.transaction() as execute:
            for change in others:
                _write(execute, change)


def _write(execute: Execute, change: Change) -> None:
    """Write a job as it is from now on: a success always, anything else only for who still has the lease."""
    values = change._asdict() | asdict(change.job)
    values["error"] = change.job.error and storable(change.job.error)
    rows = execute(
        "UPDATE jobs SET state = :state, due_at = :due_at, attempts = :attempts, first_tried_at = :first_tried_at,"
        " error = :error, done_at = :done_at WHERE update_id = :update_id AND handler = :handler"
        " AND (:state = 'done' OR due_at = :lease) RETURNING 1",
        values,
    )
    if rows and change.failed_at:
        execute("INSERT INTO attempts VALUES (:update_id, :handler, :failed_at, :seconds, :error)", values)


def finish(db: Database, handler: str, update_ids: Collection[int]) -> None:
    """Note that the jobs of `handler` on these updates are done now, by the message that covers them."""
    if update_ids:
        db.execute(
            "UPDATE jobs SET state = 'done', due_at = NULL, done_at = :now"
            f" WHERE handler = :handler AND update_id IN ({', '.join(map(str, update_ids))})",
            {"handler": handler, "now": db.now()},
        )


def lease_due(
    db: Database, handler: str, due_by: float, lease: float, limit: int, but: Iterable[int] = ()
) -> list[tuple[StoredUpdate, Job]]:
    """Atomically lease, until `lease`, at most `limit` of the jobs of `handler` that were due at `due_by`, those due
    longest; those on the updates in `but` are left out."""
    rows = db.execute(
        "WITH due AS MATERIALIZED (SELECT update_id FROM jobs WHERE handler = :handler AND state <> 'done'"
        f" AND due_at <= :due_by AND update_id NOT IN ({', '.join(map(str, (0, *but)))})"
        f" ORDER BY due_at, update_id LIMIT :limit {db.skip_locked})"
        " UPDATE jobs SET state = 'leased', due_at = :lease"
        " WHERE handler = :handler AND update_id IN (SELECT update_id FROM due) RETURNING update_id",
        {"handler": handler, "due_by": due_by, "lease": lease, "limit": limit},
    )
    ids = ", ".join(str(update_id) for (update_id,) in rows)
    stored_updates = updates.read(db, f"id IN ({ids})") if rows else []
    return [(update, job) for update in stored_updates for job in update.jobs if job.handler == handler]


def failed_attempts(db: Database, call_id: str) -> list[tuple[Any, ...]]:
    """Each attempt on a call's updates that failed: the update's status, the handler, when, the seconds, and why."""
    return db.query(
        "SELECT status, handler, at, seconds, error FROM attempts JOIN updates ON id = update_id"
        " WHERE call_id = :call_id ORDER BY at",
        {"call_id": storable(call_id)},
    )


def retry_now(db: Database, handler: str, *, failed: bool = False, call_id: str | None = None) -> int:
    """Make due now what `handler` has pending, and with `failed` also what has failed, for another day: of one call
    where given. Returns how many jobs that is."""
    states = "('pending', 'failed')" if failed else "('pending')"
    of_call = "" if call_id is None else "AND update_id IN (SELECT id FROM updates WHERE call_id = :call_id)"
    rows = db.execute(
        "UPDATE jobs SET due_at = :now, state = 'pending', done_at = NULL,"
        " first_tried_at = CASE WHEN state = 'failed' THEN NULL ELSE first_tried_at END"
        f" WHERE state <> 'done' AND state IN {states} AND handler = :handler {of_call} RETURNING 1",
        {"handler": handler, "now": db.now(), "call_id": call_id},
    )
    return len(rows)


def reset_far_future(db: Database, seconds: float) -> None:
    """Make due now what is leased or put off for more than `seconds`, as only a process whose clock was ahead does."""
    db.execute(
        "UPDATE jobs SET state = 'pending', due_at = :now WHERE state <> 'done' AND due_at > :now + :seconds",
        {"now": db.now(), "seconds": seconds},
    )


def backlog(db: Database) -> list[Backlog]:
    """What is pending (or leased) and failed, by handler."""
    rows = db.query(
        "SELECT handler, pending, failed, (SELECT received_at FROM updates WHERE id = oldest),"
        " (SELECT error FROM jobs WHERE handler = b.handler AND state <> 'done' AND update_id = latest),"
        " failed_at, due_at FROM (SELECT handler, count(due_at) AS pending, count(*) - count(due_at) AS failed,"
        " min(CASE WHEN due_at IS NOT NULL THEN update_id END) AS oldest,"
        " max(CASE WHEN error IS NOT NULL THEN update_id END) AS latest,"
        " max(done_at) AS failed_at, min(due_at) AS due_at"
        " FROM jobs WHERE state <> 'done' GROUP BY handler) AS b ORDER BY handler"
    )
    return [Backlog(*row) for row in rows]


def with_same_error(db: Database, handler: str, update: StatusUpdate) -> list[int]:
    """The other updates, a thousand at most, that `handler` has still to do and whose error is like this one's."""
    rows = db.query(
        "SELECT id FROM updates WHERE id IN (SELECT update_id FROM jobs WHERE handler = :handler AND state <> 'done'"
        " AND due_at IS NOT NULL) AND error_group = :group AND (call_id <> :id OR status <> :status)"
        " ORDER BY id LIMIT 1000",
        {"handler": handler, "group": update.error_group, **asdict(update.call)},
    )
    return [update_id for (update_id,) in rows]
