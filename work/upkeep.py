"""What keeps a receiver well for months: pruning, the mirror of active calls, jobs of handlers that are gone."""

import logging
from dataclasses import replace
from threading import Event

from flask import current_app

from handlers import HANDLERS
from handlers.active_calls import mirror_active_calls
from handlers.http import Retry
from stores import get_store, jobs, locks, retention, updates
from stores.records import Settlement
from work.reconcile import reconcile

DAY = 24 * 3600.0
BATCH = 500  # updates pruned at a time

logger = logging.getLogger(__name__)


def upkeep(stopping: Event) -> None:
    """Do what is due and no other process has taken on, as long as the process is not `stopping`."""
    store, config = get_store(), current_app.config
    longest_delay = max(1.5 * config["RETRY_LONGEST"], config["ALERT_INTERVAL"] + 60)
    jobs.reset_far_future(store, 2 * config["LEASE"], longest_delay)
    settle_unknown_handlers()
    if config["REDIS_URL"] and locks.acquire(store, "mirror", config["UPKEEP_EVERY"] - 1):
        try:
            mirror_active_calls()
        except Retry as error:
            logger.warning("active_calls not mirrored", extra={"error": str(error)})
    if claim_daily_prune():
        prune(stopping)
    longest = config["CHECK_EVERY"] + 3600  # the provider's Retry-After is an hour at most
    if config["PROVIDER_API_KEY"] and locks.acquire(store, "reconcile", config["CHECK_EVERY"], longest):
        for call, found in reconcile():
            logger.info("checked a call with the provider", extra={"call_id": call.id, "fields": {"found": found}})
            if stopping.is_set():
                return


def settle_unknown_handlers() -> None:
    """Fail the jobs of handlers that no longer exist once they are too old; until then one may come back."""
    store, config = get_store(), current_app.config
    now = store.now()
    known = {handler.__name__ for handler in HANDLERS}
    for name in {each.handler for each in jobs.backlog(store) if each.pending} - known:
        if locks.acquire(store, f"told of {name}", DAY):
            logger.error("no such handler any more: its work fails after 24 h", extra={"handler": name})
        while leased := jobs.lease_next(store, name, now, now + config["LEASE"]):
            stored, job = leased
            end = stored.received_at + config["GIVE_UP_AFTER"]
            put_off = replace(job, state="pending", due_at=min(end, now + config["RETRY_LONGEST"]))
            failed = replace(job, state="failed", due_at=None, done_at=now)
            job = replace(put_off if end > now else failed, error="no such handler any more")
            jobs.settle(store, Settlement(stored.id, now + config["LEASE"], [job]))


def claim_daily_prune() -> bool:
    """Whether a day has passed since the last time, and no more than three: else the clock may have jumped, and what it
    would remove waits for another day."""
    store = get_store()
    ended_at = locks.ends_at(store, "prune")
    if not locks.acquire(store, "prune", DAY):
        return False
    late = None if ended_at is None else store.now() - ended_at
    if late is not None and not 0 <= late <= 2 * DAY:
        logger.warning("nothing is pruned today: the clock jumped, or the receiver was off")
    return late is not None and 0 <= late <= 2 * DAY


def prune(stopping: Event) -> None:
    """Remove what is older than RETENTION_DAYS, in steps short enough to come between requests."""
    store = get_store()
    before = min(store.now(), updates.latest(store) or 0) - current_app.config["RETENTION_DAYS"] * DAY
    removed = [0, 0]
    while not stopping.is_set() and any(pruned := retention.prune(store, before, BATCH)):
        removed = [sum(each) for each in zip(removed, pruned, strict=True)]
    logger.info("pruned", extra={"fields": dict(zip(("updates", "calls"), removed, strict=True))})
