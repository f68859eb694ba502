"""Keep an update, call every handler, and write down what is still to be done."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf

from flask import current_app, g

from handlers import HANDLERS, is_on
from handlers.http import Deferred, GiveUp, Retry
from handlers.service import Attempt, service
from schemas.status_update import StatusUpdate
from schemas.times import clock
from stores import StoreError, get_store, jobs, spool
from stores.records import Job, Settlement

logger = logging.getLogger(__name__)

Handler = Callable[[StatusUpdate], None]


def dispatch(update: StatusUpdate, deadline: float = inf) -> None:
    """Keep `update` and call every handler, unless it is a repeat. What handlers do never reaches the caller.

    `deadline`: when its sender has to be answered, of time.monotonic(). Raises StoreError where it could not be kept.
    """
    store, config = get_store(), current_app.config
    lease = store.now() + config["LEASE"]
    on = [handler.__name__ for handler in HANDLERS if is_on(handler.__name__, config)]
    recorded = spool.record(store, update, on, lease)
    if recorded.update_id is None:
        logger.info(recorded.outcome, extra=_extra(update))
        return
    errors = {}
    for handler in HANDLERS:
        errors[handler.__name__] = _call(handler, update, Attempt(handler.__name__, deadline, retrying=False))
    done = [Job(name, "done", None, attempts=1) for name in on if not errors[name]]
    undone = [_reschedule(Job(name, "leased", lease), errors[name]) for name in on if errors[name]]
    settlement = Settlement(recorded.update_id, lease, done + undone)
    if queue := current_app.extensions.get("settlements"):  # of the thread that writes them, where there is one
        queue.put(settlement)
    else:
        settle(settlement)


def retry_one(handler: Handler, due_by: float, *, forced: bool = False, call_id: str | None = None) -> bool | None:
    """Run `handler` on its job that has been due longest at `due_by`, of one call if that is given. Returns whether it
    is done.

    None if none is due, or if the handler is paused and its service not asked yet; `forced` asks it all the same.
    """
    probe_at = service(handler.__name__).breaker.probe_at
    if probe_at is not None and clock() < probe_at and not forced:
        return None
    store = get_store()
    lease = store.now() + current_app.config["LEASE"]
    leased = jobs.lease_next(store, handler.__name__, due_by, lease, call_id)
    if leased is None:
        return None
    stored, job = leased
    update = stored.load()
    if error := _call(handler, update, Attempt(handler.__name__, forced=forced)):
        job = _reschedule(job, error)
    else:
        job = replace(job, state="done", due_at=None, attempts=job.attempts + 1, done_at=store.now())
    settle(Settlement(stored.id, lease, [job]))
    return error is None


def _call(handler: Handler, update: StatusUpdate, attempt: Attempt) -> Exception | None:
    """Run `handler`. Returns None if its work is done, else the error: it catches all, so that none stops another."""
    started = time.monotonic()
    g.attempt = attempt
    try:
        if started >= attempt.deadline:
            raise Deferred("no time left in this request")
        handler(update)
    except Exception as error:
        took = round(1000 * (time.monotonic() - started))
        fields = _extra(update, handler=handler.__name__, error=str(error), ms=took)
        if isinstance(error, Deferred):
            logger.info("handler put off", extra=fields)
        elif isinstance(error, Retry | GiveUp | StoreError):
            logger.warning("handler failed", extra=fields)
        else:
            logger.exception("handler failed", extra=fields)
        return error
    return None


def settle(*settlements: Settlement) -> None:
    """Write what became of jobs, unless the store fails: then they are done again."""
    try:
        jobs.settle(get_store(), *settlements)
    except StoreError as error:
        fields = {"updates": [each.update_id for each in settlements]}
        logger.error(
            "outcome not saved: these handlers run again when their lease ends",
            extra={"error": str(error), "fields": fields},
        )


def _reschedule(job: Job, error: Exception) -> Job:
    """The job after `error`: due by the schedule, when the error says, with its paused handler, or failed for good."""
    config, now = current_app.config, get_store().now()
    text = str(error) or type(error).__name__
    after, probe_at = getattr(error, "after", None), service(job.handler).breaker.probe_at
    if isinstance(error, Deferred):
        return replace(job, state="pending", due_at=now + (after or 0), error=job.error or text)
    after = after and min(after, config["RETRY_LONGEST"])
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
