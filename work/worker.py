"""What the worker of a lane does: the jobs that are due, one at first, more at a time while all goes well."""

import logging
import time
from threading import Thread

from flask import Flask, g
from marshmallow import ValidationError

from handlers.errors import GiveUp
from stores import get_store, jobs
from stores.records import Change, Job, StoredUpdate
from work.lanes import Lane
from work.settling import settle

logger = logging.getLogger(__name__)


def work(app: Flask, lane: Lane) -> None:
    """Start what is due, and wait until something may be. Raises StoreError."""
    start_due(app, lane)
    wait(app, lane)


def wait(app: Flask, lane: Lane) -> None:
    """Wait until a place has come free or something may be due, for a moment at most."""
    lane.work.wait(app.config["RETRY_EVERY"])
    lane.work.clear()


def catch_up(app: Flask, lane: Lane) -> None:
    """Try what is due now once, and wait for it as long as a service may take. Raises StoreError."""
    due_by = get_store().now()
    while start_due(app, lane, due_by) or lane.in_time():
        wait(app, lane)


def start_due(app: Flask, lane: Lane, due_by: float | None = None) -> bool:
    """Start what is due, or was at `due_by`, as far as places are free. Returns whether that was anything. Raises
    StoreError."""
    store, places = get_store(), lane.free_places()
    if not places:
        return False
    now = store.now()
    lease = now + app.config["WORKER_LEASE"]
    leased = jobs.lease_due(store, lane.name, due_by or now, lease, places, lane.in_hand.copy())
    for stored, job in leased:
        lane.in_hand.add(stored.id)
        lane.running[stored.id] = time.monotonic()
        Thread(target=_attempt, args=(app, lane, stored, job), name=f"{lane.name} job", daemon=True).start()
    return bool(leased)


def _attempt(app: Flask, lane: Lane, stored: StoredUpdate, job: Job) -> None:
    """Do a job and have that written; its place comes free whatever happens."""
    with app.app_context():
        g.patience = app.config["WORKER_PATIENCE"]
        try:
            settle([_do(lane, stored, job)])
        except Exception:
            logger.exception("done again when its lease ends", extra={"call_id": stored.call_id, "handler": lane.name})
            lane.in_hand.discard(stored.id)
        finally:
            lane.running.pop(stored.id, None)
            lane.work.set()


def _do(lane: Lane, stored: StoredUpdate, job: Job) -> Change:
    """Do a job. Returns what becomes of it."""
    extra = {"call_id": stored.call_id, "status": stored.status, "handler": lane.name}
    try:
        update = stored.load()
    except (ValidationError, ValueError) as error:
        logger.error("the kept message cannot be read", extra={**extra, "error": str(error)})
        return lane.change(stored.id, job, GiveUp(f"the kept message cannot be read: {error}"))
    change = lane.call(update, stored.id, job)
    if change.job.state == "done":
        logger.info("done later", extra={**extra, "fields": {"attempts": change.job.attempts}})
    return change
