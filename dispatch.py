"""Keep an update, call every handler, and write down what is still to be done."""

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from math import inf

from flask import current_app, g

from config import clock
from handlers import HANDLERS
from handlers.outbound import GiveUp, NotNow, Retry, Unavailable
from schemas.status_update import StatusUpdate, load
from stores import Kept, Row, Store, StoreError, get_store

logger = logging.getLogger(__name__)

Handler = Callable[[StatusUpdate], None]


class Pauses:
    """Which handlers' services are out of order, as far as this process knows. Only the retry thread asks those."""

    def __init__(self) -> None:
        self._failures: Counter[str] = Counter()
        self._probe_at: dict[str, float] = {}

    def until(self, handler: str) -> float | None:
        """When a paused handler is tried again, in Unix seconds; None where it is not paused."""
        return self._probe_at.get(handler)

    def note(self, handler: str, error: Exception | None) -> None:
        """Start a pause, prolong it or end it, by how a call of the handler went."""
        if not isinstance(error, Unavailable):
            if handler in self._failures and not isinstance(error, NotNow):
                self._failures.pop(handler, None)  # another thread may have been here
                if self._probe_at.pop(handler, None) is not None:
                    logger.info("pause over", extra={"handler": handler})
            return
        self._failures[handler] += 1
        if error.after is not None or self._failures[handler] >= current_app.config["PAUSE_AFTER"]:
            if handler not in self._probe_at:
                logger.warning("handler paused", extra={"handler": handler, "error": str(error)})
            after = current_app.config["PROBE_EVERY"] if error.after is None else error.after
            self._probe_at[handler] = clock() + after


def dispatch(update: StatusUpdate) -> None:
    """Keep `update` and call every handler, unless it is a repeat. What handlers do never reaches the caller.

    Raises StoreError where the update could not be kept.
    """
    store, now = get_store(), clock()
    lease = now + current_app.config["LEASE"]
    new = store.record(update, [handler.__name__ for handler in HANDLERS], lease, now=now)
    if not new:
        logger.info("repeat" if new is False else "spooled", extra=_extra(update))
        return
    _work(store, update, lease, {handler: Row(handler.__name__, lease) for handler in HANDLERS}, probe=False)


def retry_one(handler: Handler, due_at: float, *, probe: bool = False) -> bool | None:
    """Call `handler` for its row that has been due longest at `due_at`; whether it is done now.

    None if none is due, or if the handler is paused and not to be tried yet; `probe` tries it all the same.
    """
    until = _pauses().until(handler.__name__)
    if until is not None and clock() < until and not probe:
        return None
    lease = clock() + current_app.config["LEASE"]
    store = get_store()
    taken = store.take(handler.__name__, due_at, lease)
    if taken is None:
        return None
    kept, row = taken
    return _work(store, loaded(kept), lease, {handler: row}, probe=True)


def _work(store: Store, update: StatusUpdate, lease: float, rows: dict[Handler, Row], *, probe: bool) -> bool:
    """Call each handler, the paused ones only to `probe`, and settle its row; whether everything is done."""
    failures, pauses, deadline = [], _pauses(), g.get("deadline", inf)
    for handler, row in rows.items():
        if pauses.until(row.handler) is not None and not probe:
            error = NotNow("paused")
        elif time.monotonic() >= deadline:
            error = NotNow("no time left in this request")
        else:
            error = _call(handler, update)
            pauses.note(row.handler, error)
        if error is not None:
            failures.append(_reschedule(row, error))
    done = {row.handler for row in rows.values()} - {row.handler for row in failures}
    try:
        store.settle(update, lease, done, failures)
    except StoreError as error:
        logger.error("not settled: done again when the lease is over", extra=_extra(update, error=str(error)))
    return not failures


def _call(handler: Handler, update: StatusUpdate) -> Exception | None:
    """Call `handler`: None when its work is done, else why not. The broad `except` is here."""
    started = time.monotonic()
    try:
        handler(update)
    except Exception as error:
        took = round(1000 * (time.monotonic() - started))
        fields = _extra(update, handler=handler.__name__, error=str(error), ms=took)
        if isinstance(error, NotNow):
            logger.info("handler put off", extra=fields)
        elif isinstance(error, Retry | GiveUp | StoreError):
            logger.warning("handler failed", extra=fields)
        else:
            logger.exception("handler failed", extra=fields)
        return error
    return None


def _reschedule(row: Row, error: Exception) -> Row:
    """The row after `error`: due by the schedule, when the error says, with its paused handler, or failed for good."""
    config, now = current_app.config, clock()
    text = str(error) or type(error).__name__
    after, until = getattr(error, "after", None), _pauses().until(row.handler)
    if isinstance(error, NotNow):
        return replace(row, due=now + (after or 0), error=row.error or text)
    if after is None and until is not None:
        after = until - now
    if after is None:
        doubled = config["RETRY_FIRST"] * 2 ** min(row.attempts, 16)
        after = min(doubled, config["RETRY_LONGEST"]) * random.uniform(0.8, 1.2)
    first_tried = row.first_tried or now
    over = isinstance(error, GiveUp) or now - first_tried >= config["GIVE_UP_AFTER"]
    return Row(row.handler, None if over else now + after, row.attempts + 1, first_tried, text)


def loaded(kept: Kept) -> StatusUpdate:
    """A kept update as its handlers first got it."""
    return load(json.loads(kept.message), datetime.fromtimestamp(kept.received_at, UTC))


def _pauses() -> Pauses:
    return current_app.extensions["pauses"]


def _extra(update: StatusUpdate, **fields: str | int) -> dict[str, str | int]:
    return {"call_id": update.call.id, "status": update.call.status, **fields}
