"""Keep an update, call every handler, and write down what is still to be done."""

import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

from flask import current_app

from handlers import HANDLERS
from handlers.outbound import GiveUp, NotNow, Retry
from schemas.status_update import StatusUpdate, load
from stores import Row, StoreError, get_store

logger = logging.getLogger(__name__)

Handler = Callable[[StatusUpdate], None]


def dispatch(update: StatusUpdate) -> None:
    """Keep `update` and call every handler, unless it is a repeat. What handlers do never reaches the caller.

    Raises StoreError where the update could not be kept.
    """
    store, now = get_store(), clock()
    lease = now + current_app.config["LEASE"]
    if not store.record(update, [handler.__name__ for handler in HANDLERS], lease, now=now):
        logger.info("repeat", extra=_extra(update))
        return
    _work(update, [(handler, Row(handler.__name__, due=lease)) for handler in HANDLERS])


def retry_one(handler: Handler, due_at: float) -> bool | None:
    """Call `handler` for its row that has been due longest at `due_at`; None if none is, else whether it is done."""
    now = clock()
    taken = get_store().take(handler.__name__, due_at, now + current_app.config["LEASE"])
    if taken is None:
        return None
    kept, row = taken
    update = load(json.loads(kept.message), datetime.fromtimestamp(kept.received_at, UTC))
    return _work(update, [(handler, row)])


def clock() -> float:
    """Now, in Unix seconds."""
    return current_app.config["CLOCK"]()


def _work(update: StatusUpdate, work: list[tuple[Handler, Row]]) -> bool:
    """Call each handler and settle its row, all leased until the same time; whether everything is done."""
    done, failures = [], []
    for handler, row in work:
        failure = _call(handler, update, row)
        if failure:
            failures.append(failure)
        else:
            done.append(handler.__name__)
    try:
        get_store().settle(update, work[0][1].due, done, failures)
    except StoreError as error:
        logger.error("not settled: tried again when the lease is over", extra=_extra(update, error=str(error)))
    return not failures


def _call(handler: Handler, update: StatusUpdate, row: Row) -> Row | None:
    """Call `handler`: None when its work is done, else the row to write. The one broad `except` is here."""
    started = time.monotonic()
    try:
        handler(update)
        return None
    except Exception as error:
        expected = isinstance(error, Retry | GiveUp)
        logger.log(
            logging.WARNING if expected else logging.ERROR,
            "handler failed",
            exc_info=None if expected else error,
            extra=_extra(update, handler=row.handler, error=str(error), ms=round(1000 * (time.monotonic() - started))),
        )
        return _reschedule(row, error, clock())


def _reschedule(row: Row, error: Exception, now: float) -> Row:
    """The row after `error`: due again by the schedule or when the error says, or failed for good."""
    after, text = getattr(error, "after", None), f"{error}" or type(error).__name__
    if isinstance(error, NotNow):
        return replace(row, due=now + (after or 0), error=text)
    config = current_app.config
    first_tried, attempts = row.first_tried or now, row.attempts + 1
    if after is None:
        doubled = config["RETRY_FIRST"] * 2 ** min(row.attempts, 16)
        after = min(doubled, config["RETRY_LONGEST"]) * random.uniform(0.8, 1.2)
    over = isinstance(error, GiveUp) or now - first_tried >= config["GIVE_UP_AFTER"]
    return Row(row.handler, None if over else now + after, attempts, first_tried, text)


def _extra(update: StatusUpdate, **fields: str | int) -> dict[str, str | int]:
    return {"call_id": update.call.id, "status": update.call.status, **fields}
