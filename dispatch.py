"""Keep an update, call every handler, and write down what is still to be done."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf

from flask import current_app, g

from config import clock
from handlers import HANDLERS, is_on
from handlers.outbound import GiveUp, NotNow, Retry, service
from schemas.status_update import StatusUpdate
from stores import Database, StoreError, get_store, jobs, spool
from stores.records import Job

logger = logging.getLogger(__name__)

Handler = Callable[[StatusUpdate], None]


def dispatch(update: StatusUpdate) -> None:
    """Keep `update` and call every handler, unless it is a repeat. What handlers do never reaches the caller.

    Raises StoreError where the update could not be kept.
    """
    store, config = get_store(), current_app.config
    lease = store.now() + config["LEASE"]
    names = [handler.__name__ for handler in HANDLERS if is_on(handler.__name__, config)]
    recorded = spool.record(store, update, names, lease)
    if recorded.update_id is None:
        logger.info(recorded.outcome, extra=_extra(update))
        return
    g.retrying = False
    leased = {handler: Job(handler.__name__, "leased", lease) for handler in HANDLERS}
    _run_handlers(store, update, recorded.update_id, lease, leased)


def retry_one(handler: Handler, due_by: float, *, forced: bool = False) -> bool | None:
    """Call `handler` for its job that has been due longest at `due_by`; whether it is done now.

    None if none is due, or if the handler is paused and its service not asked yet; `forced` asks it all the same.
    """
    probe_at = service(handler.__name__).breaker.probe_at
    if probe_at is not None and clock() < probe_at and not forced:
        return None
    store = get_store()
    lease = store.now() + current_app.config["LEASE"]
    leased = jobs.lease_next(store, handler.__name__, due_by, lease)
    if leased is None:
        return None
    g.retrying, g.forced = True, forced
    stored, job = leased
    return _run_handlers(store, stored.load(), stored.id, lease, {handler: job})


def _run_handlers(
    store: Database, update: StatusUpdate, update_id: int, lease: float, leased: dict[Handler, Job]
) -> bool:
    """Call each handler and settle its job; whether everything is done."""
    settled = []
    for handler, job in leased.items():
        error = _call(handler, update)
        settled.append(_done(job) if error is None else _reschedule(job, error))
    try:
        jobs.settle(store, update_id, lease, settled)
    except StoreError as error:
        logger.error("not settled: done again when the lease is over", extra=_extra(update, error=str(error)))
    return all(job.state == "done" for job in settled)


def _call(handler: Handler, update: StatusUpdate) -> Exception | None:
    """Call `handler`: None when its work is done, else why not. The broad `except` is here."""
    started = time.monotonic()
    g.handler = handler.__name__
    try:
        if started >= g.get("deadline", inf):
            raise NotNow("no time left in this request")
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


def _done(job: Job) -> Job:
    """The job after it was done; what was not done at once keeps when it was."""
    done_at = get_store().now() if g.retrying else None
    return replace(job, state="done", due_at=None, attempts=job.attempts + 1, done_at=done_at)


def _reschedule(job: Job, error: Exception) -> Job:
    """The job after `error`: due by the schedule, when the error says, with its paused handler, or failed for good."""
    config, now = current_app.config, get_store().now()
    text = str(error) or type(error).__name__
    after, probe_at = getattr(error, "after", None), service(job.handler).breaker.probe_at
    if isinstance(error, NotNow):
        return replace(job, state="pending", due_at=now + (after or 0), error=job.error or text)
    if after is None and probe_at is not None:
        after = max(probe_at - clock(), 0)
    if after is None:
        doubled = config["RETRY_FIRST"] * 2 ** min(job.attempts, 16)
        after = min(doubled, config["RETRY_LONGEST"]) * random.uniform(0.8, 1.2)
    job = replace(job, attempts=job.attempts + 1, first_tried_at=job.first_tried_at or now, error=text)
    if isinstance(error, GiveUp) or now - job.first_tried_at >= config["GIVE_UP_AFTER"]:
        return replace(job, state="failed", due_at=None, done_at=now)
    return replace(job, state="pending", due_at=now + after)


def _extra(update: StatusUpdate, **fields: str | int) -> dict[str, str | int]:
    return {"call_id": update.call.id, "status": update.call.status, **fields}
