"""What keeps a receiver well for months: pruning, the mirror of active calls, checks with the provider."""

import logging
from collections import Counter
from threading import Event

from flask import current_app

from handlers.active_calls import mirror_active_calls
from handlers.errors import Retry
from stores import get_store, jobs, locks, retention, updates
from work.lanes import get_lanes
from work.reconcile import reconcile

DAY = 24 * 3600.0
BATCH = 100  # updates pruned at a time

logger = logging.getLogger(__name__)


def upkeep(stopping: Event) -> None:
    """Do what is due and no other process has taken on, as long as the process is not `stopping`."""
    store, config = get_store(), current_app.config
    # Retries and alerts are never put off for longer than that.
    jobs.reset_far_future(store, max(1.5 * config["RETRY_LONGEST"], config["ALERT_INTERVAL"] + 60))
    if config["REDIS_URL"] and locks.acquire(store, "mirror", config["UPKEEP_EVERY"] - 1):
        try:
            mirror_active_calls()
        except Retry as error:
            logger.warning("active_calls not mirrored", extra={"error": str(error)})
    if locks.acquire(store, "prune", DAY):
        prune(stopping)
    if config["PROVIDER_API_KEY"] and locks.acquire(store, "reconcile", config["CHECK_EVERY"]):
        for call, result in reconcile():
            logger.info("checked a call with the provider", extra={"call_id": call.id, "fields": {"result": result}})
            if stopping.is_set():
                return


def prune(stopping: Event) -> None:
    """Remove what is older than RETENTION_DAYS, by the earlier of now and the newest update, in steps short enough to
    come between requests."""
    store = get_store()
    before = min(store.now(), updates.latest(store) or 0) - current_app.config["RETENTION_DAYS"] * DAY
    names = [lane.name for lane in get_lanes()]
    removed = Counter(updates=0, calls=0)
    while not stopping.is_set() and any(step := retention.prune(store, before, BATCH, names)):
        removed.update(updates=step[0], calls=step[1])
    logger.info("pruned", extra={"fields": dict(removed)})
