"""What the receiver tells Slack about itself: each trouble at most once an hour, from one process of all."""

import logging
from collections.abc import Iterator

from flask import current_app, g

from config import public_url
from handlers.errors import GiveUp, Retry
from handlers.slack import LONGEST, alert_on_error, duration, plain, send
from stores import Database, get_store, jobs, locks, refusals, spool, updates
from work.lanes import get_lanes

WAITED = 600.0  # seconds that work waits before it is reported
AGAIN = 3600.0  # seconds between two messages about one trouble
YEAR = 365 * 24 * 3600.0
UNSIGNED = ("no secret is set here", "unsigned", "wrong signature")  # of refusals.REASONS

logger = logging.getLogger(__name__)


def report_troubles() -> None:
    """Report each trouble to Slack, at most once an hour, and a silence once. Raises StoreError."""
    if not current_app.config["SLACK_WEBHOOK_URL"]:
        return
    g.patience = current_app.config["WORKER_PATIENCE"]
    store = get_store()
    db = store.spool if store.failure and store.spool else store
    for name, text in troubles(store):
        lock = f"reported: {name}"
        if locks.acquire(db, lock, AGAIN) and not _tell(text):
            locks.release(db, lock)
    if not store.failure:
        _report_silence(store)


def troubles(store: Database) -> Iterator[tuple[str, str]]:
    """What is wrong now: a name for each trouble, and what to say of it."""
    if waiting := spool.waiting(store):
        because = f": {store.failure}" if store.failure else ""
        yield "spooled", f"{_updates(waiting)} spooled{because}. They go on by themselves."
    if store.failure:
        return
    yield from _standing_still(store)
    for refusal in refusals.since(store, store.now() - AGAIN):
        if refusal.reason in UNSIGNED:
            code, advice = refusals.REASONS[refusal.reason]
            yield refusal.reason, f"{_updates(refusal.times)} refused: {code} {refusal.reason}. {advice}"


def _standing_still(store: Database) -> Iterator[tuple[str, str]]:
    """Work that has waited for long or failed within the hour: of the handlers that are on, but for Slack's own."""
    now, names = store.now(), {lane.name for lane in get_lanes()} - {alert_on_error.__name__}
    for backlog in jobs.backlog(store):
        if backlog.handler not in names:
            continue
        reason = f" Last error: {backlog.error}." if backlog.error else ""
        if backlog.failed_at and backlog.failed_at > now - AGAIN:
            text = f"{backlog.handler}: {_updates(backlog.failed)} failed for good.{reason}"
            yield f"{backlog.handler} failed", f"{text} Run it again on the dashboard."
        if backlog.oldest and now - backlog.oldest >= WAITED:
            text = f"{backlog.handler}: {_updates(backlog.pending)} pending, the oldest for"
            yield f"{backlog.handler} waits", f"{text} {duration(now - backlog.oldest)}.{reason}"


def silence(store: Database) -> float | None:
    """For how many seconds no update has come, where that is longer than ALERT_SILENCE. Raises StoreError."""
    hours, latest = current_app.config["ALERT_SILENCE"], updates.latest(store)
    seconds = store.now() - latest if hours and latest else 0.0
    return seconds if hours and seconds >= hours * 3600 else None


def _report_silence(store: Database) -> None:
    """Report once that no update comes, and once that they come again."""
    if seconds := silence(store):
        text = f"No update has come for {duration(seconds)}. Does the provider still post to this receiver?"
        if locks.acquire(store, "silence", YEAR) and not _tell(text):
            locks.release(store, "silence")
    elif locks.release(store, "silence") and not _tell("Updates come again."):
        locks.acquire(store, "silence", YEAR)


def _tell(text: str) -> bool:
    """Whether Slack has taken the message."""
    link = f"\n{url}" if (url := public_url()) else ""
    try:
        send(plain(f"Call status receiver: {text}")[: LONGEST - len(link)] + link)
    except (Retry, GiveUp) as error:
        logger.warning("trouble not reported", extra={"error": str(error)})
        return False
    return True


def _updates(number: int) -> str:
    return f"{number:,} update{'' if number == 1 else 's'}"
