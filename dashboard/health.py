"""Whether the receiver is well, for platforms and monitors: nothing in it tells of a call."""

import logging
from typing import Any

from logs import mask
from schemas.times import iso
from stores import Database, StoreError, get_store, jobs, spool, updates
from stores.records import Backlog

logger = logging.getLogger(__name__)


def health() -> tuple[dict[str, Any], int]:
    """What /healthz tells, and its status: 503 only when an update could not be kept now."""
    store, failure = get_store(), ""
    try:
        try:
            last_update, backlog = _check(store)
        except StoreError as error:
            if store.spool is None:
                raise
            failure = str(error)
            last_update, backlog = _check(store.spool)
        spooled = spool.waiting(store)
    except StoreError as error:
        logger.error("an update could not be kept now", extra={"error": str(error)})
        return {"status": "error", "store": store.name, "error": str(error)}, 503
    oldest = min((each.oldest for each in backlog if each.oldest is not None), default=None)
    found = {
        "status": "ok",
        "store": store.name,
        "pending": sum(each.pending for each in backlog),
        "failed": sum(each.failed for each in backlog),
        "oldest_pending_s": oldest and round(store.now() - oldest, 1),
        "last_update_at": iso(last_update),
        "handlers": {each.handler: handler_state(each) for each in backlog},
    }
    failure = failure or store.failure
    if spooled or failure:
        found |= {"spooled": spooled, "spooled_because": failure}
    return found, 200


def _check(db: Database) -> tuple[float | None, list[Backlog]]:
    """When the latest update came and what is still to be done. Raises StoreError if `db` could not keep an update."""
    db.check()
    return updates.latest(db), jobs.backlog(db)


def handler_state(backlog: Backlog) -> dict[str, Any]:
    """One handler with work to do in `/healthz`."""
    return {
        "pending": backlog.pending,
        "failed": backlog.failed,
        "oldest_pending_at": iso(backlog.oldest),
        "next_try_at": iso(backlog.due_at),
        "error": backlog.error and mask(backlog.error),  # anybody may ask
    }
