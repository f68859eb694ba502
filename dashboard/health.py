"""Whether the receiver is well, for platforms and monitors: a stranger gets counts, and who has access the reasons."""

from collections.abc import Callable
from typing import Any, TypeVar

from logs import mask
from schemas.times import clock, iso
from stores import Database, StoreError, get_refusals, get_store, jobs, spool, updates
from stores.records import Backlog

LOOK_EVERY = 1.0  # seconds between two looks at the store for strangers
NOT_KEPT_FOR = 60.0  # seconds that a failure is told, unless an update was kept since: then a look at the store decides
UNKNOWN = dict.fromkeys(("pending", "failed", "oldest_pending_s", "last_update_at"))
FOR_ALL = ("status", "store", *UNKNOWN, "spooled")  # what strangers may know

Result = TypeVar("Result")


class Health:
    """What /healthz tells. A look at the store writes nothing, and does for all strangers of a second."""

    def __init__(self) -> None:
        self._looked_at = 0.0
        self._figures: dict[str, Any] = {}

    def answer(self, details: bool) -> tuple[dict[str, Any], int]:
        """The answer and its status, which is 503 where an update could not be kept; with `details` as of now."""
        figures = look(get_store()) if details else self._recent_figures()
        last_update_at, not_kept_at = figures["last_update_at"], get_refusals().not_kept_at
        failed = not_kept_at > max(last_update_at or 0, clock() - NOT_KEPT_FOR)
        is_well = figures["pending"] is not None and not failed
        answer = {"status": "ok" if is_well else "error", **figures, "last_update_at": iso(last_update_at)}
        return (answer if details else {name: answer[name] for name in FOR_ALL}), 200 if is_well else 503

    def _recent_figures(self) -> dict[str, Any]:
        """Those of the last look, unless it is a second ago: then whoever asks first looks again."""
        if not self._figures or abs(clock() - self._looked_at) >= LOOK_EVERY:
            self._looked_at = clock()
            self._figures = look(get_store())
        return self._figures


def look(store: Database) -> dict[str, Any]:
    """The figures of `store`, or of its spool while it cannot be reached, and why that is."""
    known, error = _try(figures, store)
    if error and store.spool:
        known, _ = _try(figures, store.spool)
    spooled, spool_error = _try(spool.waiting, store)
    answer = {"store": store.name, **UNKNOWN, "handlers": {}, **(known or {}), "spooled": spooled}
    if reason := error or store.failure or spool_error:
        answer["spooled_because" if store.spool else "error"] = reason
    return answer


def _try(verb: Callable[[Database], Result], db: Database) -> tuple[Result | None, str]:
    """What `verb` returns, or why it could not."""
    try:
        return verb(db), ""
    except StoreError as error:
        return None, str(error)


def figures(db: Database) -> dict[str, Any]:
    """What is still to be done in `db`, in all and by handler. Raises StoreError."""
    backlog = jobs.backlog(db)
    oldest = min((handler.oldest for handler in backlog if handler.oldest is not None), default=None)
    return {
        "pending": sum(handler.pending for handler in backlog),
        "failed": sum(handler.failed for handler in backlog),
        "oldest_pending_s": None if oldest is None else round(db.now() - oldest, 1),
        "last_update_at": updates.latest(db),
        "handlers": {handler.handler: handler_state(handler) for handler in backlog},
    }


def handler_state(backlog: Backlog) -> dict[str, Any]:
    """One handler with work to do."""
    return {
        "pending": backlog.pending,
        "failed": backlog.failed,
        "oldest_pending_at": iso(backlog.oldest),
        "next_try_at": iso(backlog.due_at),
        "error": backlog.error and mask(backlog.error),
    }
