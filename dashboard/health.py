"""Whether the receiver is well, for platforms and monitors: a stranger gets counts, and who has access the reasons."""

from typing import Any

from dashboard.figures import remembered
from logs import mask
from schemas.times import clock, iso
from stores import Database, StoreError, get_refusals, get_store, jobs, spool, updates

NOT_KEPT_FOR = 60.0  # seconds that a failure is told, unless an update was kept since: then a look at the store decides
UNKNOWN = dict.fromkeys(("pending", "failed", "oldest_pending_s", "last_update_at"))
FOR_ALL = ("status", "store", *UNKNOWN, "spooled")  # what strangers may know


def health(details: bool) -> tuple[dict[str, Any], int]:
    """What /healthz tells, and its status: 503 where an update could not be kept. With `details` it is as of now; for
    strangers one look at the store does for a second."""
    store, now = get_store(), clock()
    figures = look(store) if details else remembered("health", 1.0, lambda: look(store))
    last_update_at, not_kept_at = figures["last_update_at"], get_refusals().not_kept_at
    failed = not_kept_at > max(last_update_at or 0, now - NOT_KEPT_FOR)
    is_well = figures["pending"] is not None and not failed
    answer = {"status": "ok" if is_well else "error", **figures, "last_update_at": iso(last_update_at)}
    return (answer if details else {name: answer[name] for name in FOR_ALL}), 200 if is_well else 503


def look(store: Database) -> dict[str, Any]:
    """The figures of `store`, or of its spool while it cannot be reached, and why that is. This writes nothing."""
    answer: dict[str, Any] = {"store": store.name, **UNKNOWN, "spooled": spool.waiting(store)}
    reason = store.failure or (store.spool.failure if store.spool else "")
    for db in filter(None, (store, store.spool)):
        try:
            answer |= figures(db)
            break
        except StoreError as error:
            reason = reason or str(error)
    if reason:
        answer["spooled_because" if store.spool else "error"] = reason
    return answer


def figures(db: Database) -> dict[str, Any]:
    """What is still to be done in `db`, and each handler's last error. Raises StoreError."""
    backlogs = jobs.backlog(db)
    oldest = min((backlog.oldest for backlog in backlogs if backlog.oldest is not None), default=None)
    return {
        "pending": sum(backlog.pending for backlog in backlogs),
        "failed": sum(backlog.failed for backlog in backlogs),
        "oldest_pending_s": None if oldest is None else round(db.now() - oldest, 1),
        "last_update_at": updates.latest(db),
        "errors": {backlog.handler: mask(backlog.error) for backlog in backlogs if backlog.error},
    }
