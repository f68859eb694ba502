"""Jobs: one handler's work on one update, which is pending, leased, done or failed.

A lease's end is its fencing token: success always ends the job, failure is written only by who still has the lease.
"""

from collections.abc import Collection
from dataclasses import asdict

from schemas.status_update import StatusUpdate, storable
from stores import updates
from stores.database import Database
from stores.records import Backlog, Job, Settlement, StoredUpdate

_MOST_AT_ONCE = 1000  # jobs that one message covers


def settle(db: Database, *settlements: Settlement) -> None:
    """Write what became of jobs that were leased. Those done at once (no `done_at`) go."""
    done: dict[tuple[str, ...], list[int]] = {}  # updates, by the handlers that have done all of them
    for update_id, lease, jobs in settlements:
        at_once = tuple(job.handler for job in jobs if job.state == "done" and job.done_at is None)
        done.setdefault(at_once, []).append(update_id)
        for job in jobs:
            if job.handler not in at_once:
                _change(db, update_id, lease, job)
    for handlers, update_ids in done.items():
        finish(db, handlers, update_ids)


def _change(db: Database, update_id: int, lease: float, job: Job) -> None:
    db.execute(
        "UPDATE jobs SET state = :state, due_at = :due_at, attempts = :attempts, first_tried_at = :first_tried_at,"
        " error = :error, done_at = :done_at WHERE update_id = :id AND handler = :handler"
        + ("" if job.state == "done" else " AND due_at = :lease"),
        asdict(job) | {"error": job.error and storable(job.error), "id": update_id, "lease": lease},
    )


def finish(db: Database, handlers: Collection[str], update_ids: Collection[int]) -> None:
    """Remove the jobs of `handlers` on these updates: they are done."""
    if handlers and update_ids:
        names = {f"handler{number}": handler for number, handler in enumerate(handlers)}
        marks, ids = ", ".join(f":{name}" for name in names), ", ".join(map(str, update_ids))
        db.execute(f"DELETE FROM jobs WHERE update_id IN ({ids}) AND handler IN ({marks})", names)


def lease_next(
    db: Database, handler: str, due_by: float, lease: float, call_id: str | None = None
) -> tuple[StoredUpdate, Job] | None:
    """Atomically lease, until `lease`, the job of `handler` that has been due longest at `due_by`: of all, or of one
    call."""
    of_call = "" if call_id is None else " AND update_id IN (SELECT id FROM updates WHERE call_id = :call_id)"
    leased = db.execute(
        "UPDATE jobs SET state = 'leased', due_at = :lease WHERE handler = :handler AND update_id ="
        " (SELECT update_id FROM jobs WHERE handler = :handler AND state <> 'done' AND due_at <= :due_by"
        f"{of_call} ORDER BY due_at, update_id LIMIT 1 {db.skip_locked}) RETURNING update_id",
        {"handler": handler, "due_by": due_by, "lease": lease, "call_id": call_id},
    )
    update = updates.by_id(db, leased[0][0]) if leased else None
    return update and (update, next(job for job in update.jobs if job.handler == handler))


def retry_now(db: Database, *, failed: bool = False, call_id: str | None = None, handler: str | None = None) -> int:
    """Make due now what is pending, and with `failed` also what has failed, as if never tried: of one call or handler
    where given. Returns how many jobs that is."""
    where = ["state IN ('pending', 'failed')" if failed else "state = 'pending'"]
    if call_id is not None:
        where.append("update_id IN (SELECT id FROM updates WHERE call_id = :call_id)")
    if handler is not None:
        where.append("handler = :handler")
    with db.transaction() as execute:
        return len(
            execute(
                "UPDATE jobs SET due_at = :now, state = 'pending',"
                " attempts = CASE WHEN state = 'failed' THEN 0 ELSE attempts END,"
                " first_tried_at = CASE WHEN state = 'failed' THEN NULL ELSE first_tried_at END"
                f" WHERE {' AND '.join(where)} RETURNING 1",
                {"now": db.now(), "call_id": call_id, "handler": handler},
            )
        )


def reset_far_future(db: Database, lease: float, delay: float) -> int:
    """Make due now what is leased for more than `lease` seconds from now, or put off for more than `delay`: by a
    process whose clock was ahead. Returns how many jobs that is.

    Both have to be longer than any that is right, as others take leases while this waits to be written."""
    return len(
        db.execute(
            "UPDATE jobs SET state = 'pending', due_at = :now WHERE state = 'leased' AND due_at > :now + :lease"
            " OR state = 'pending' AND due_at > :now + :delay RETURNING 1",
            {"now": db.now(), "lease": lease, "delay": delay},
        )
    )


def backlog(db: Database) -> list[Backlog]:
    """What is pending (or leased) and failed, by handler."""
    found = db.query(
        "SELECT handler, pending, failed, (SELECT received_at FROM updates WHERE id = oldest),"
        " (SELECT error FROM jobs WHERE handler = b.handler AND state <> 'done' AND update_id = latest),"
        " failed_at, due_at FROM (SELECT handler, count(due_at) AS pending, count(*) - count(due_at) AS failed,"
        " min(CASE WHEN due_at IS NOT NULL THEN update_id END) AS oldest,"
        " max(CASE WHEN error IS NOT NULL THEN update_id END) AS latest,"
        " max(done_at) AS failed_at, min(due_at) AS due_at"
        " FROM jobs WHERE state <> 'done' GROUP BY handler) AS b ORDER BY handler"
    )
    return [Backlog(*row) for row in found]


def count_done(db: Database, handler: str, since: float) -> int:
    """How many jobs of `handler` that were not done at once have been done since."""
    where = "handler = :handler AND state = 'done' AND done_at >= :since"
    return db.query(f"SELECT count(*) FROM jobs WHERE {where}", {"handler": handler, "since": since})[0][0]


def with_same_error(db: Database, handler: str, update: StatusUpdate) -> list[int]:
    """The other updates, a thousand at most, that `handler` has still to do and whose error is like this one's."""
    found = db.query(
        "SELECT id FROM updates JOIN jobs ON update_id = id WHERE handler = :handler AND state IN ('pending', 'leased')"
        " AND error_group = :group AND (call_id <> :id OR status <> :status) ORDER BY id LIMIT :most",
        {"handler": handler, "group": update.error_group, "most": _MOST_AT_ONCE, **asdict(update.call)},
    )
    return [id for (id,) in found]
