"""What the receiver tells Slack about itself: each trouble at most once an hour, from one process of all."""

import logging
from collections.abc import Iterator

from flask import current_app, g

from config import public_url
from handlers.errors import GiveUp, Retry
from handlers.slack import LONGEST, alert_on_error, duration, plain, send
from stores import Database, get_store, jobs, locks, refusals, spool, updates
from work.lanes import get_lane

WAITED = 600.0  # seconds that work waits before it is reported
HOUR = 3600.0  # between two messages about one trouble

logger = logging.getLogger(__name__)


def report_troubles() -> None:
    """Report each trouble to Slack, at most once an hour, and a silence and its end once. Raises StoreError."""
    if not current_app.config["SLACK_WEBHOOK_URL"]:
        return
    g.patience = current_app.config["WORKER_PATIENCE"]
    store = get_store()
    db = store.spool if store.failure and store.spool else store
    for name, text in troubles(store):
        _report(db, name, text)
    if store.failure:
        return
    if seconds := silence(store):
        text = f"No update has come for {duration(seconds)}. Does the provider still post to this receiver?"
        _report(store, "silence", text, 365 * 24 * HOUR)
    elif locks.release(store, "reported: silence"):
        _report(store, "end of a silence", "Updates come again.")


def troubles(store: Database) -> Iterator[tuple[str, str]]:
    """What is wrong now: a name for each trouble, and what to say of it."""
    if waiting := spool.waiting(store):
        because = f": {store.failure}" if store.failure else ""
        yield "spooled", f"{waiting:,} spooled{because}. They go on by themselves."
    if store.failure:
        return
    now = store.now()
    for reason, times, _ in refusals.since(store, now - HOUR):
        code, advice = refusals.REASONS[reason]
        if code == 401:
            yield reason, f"{times:,} refused: {code} {reason}. {advice}"
    for backlog in jobs.backlog(store):
        lane = get_lane(backlog.handler)
        waits = backlog.oldest and now - backlog.oldest >= WAITED
        fails = backlog.failed_at and backlog.failed_at > now - HOUR
        if lane and lane.handler is not alert_on_error and (waits or fails):
            error = f" Last error: {backlog.error}." if backlog.error else ""
            yield lane.name, f"{lane.name}: {backlog.pending:,} pending, {backlog.failed:,} failed for good.{error}"


def silence(store: Database) -> float | None:
    """For how many seconds no update has come, where that is longer than ALERT_SILENCE. Raises StoreError."""
    hours, latest = current_app.config["ALERT_SILENCE"], updates.latest(store)
    seconds = store.now() - latest if hours and latest else 0.0
    return seconds if hours and seconds >= hours * HOUR else None


def _report(db: Database, name: str, text: str, seconds: float = HOUR) -> None:
    """Tell Slack, unless it was told of this trouble within so many seconds; what it does not take is told later."""
    lock, url = f"reported: {name}", public_url()
    if not locks.acquire(db, lock, seconds):
        return
    link = f"\n{url}" if url else ""
    try:
        send(plain(f"Call status receiver: {text}")[: LONGEST - len(link)] + link)
    except (Retry, GiveUp) as error:
        locks.release(db, lock)
        logger.warning("trouble not reported", extra={"error": str(error)})
