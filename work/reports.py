"""What the receiver tells Slack about itself: that a handler is paused, that it is well again, that updates failed for
good, are spooled or are refused. One message per trouble and hour, from one process of all, never about Slack."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from flask import current_app, g

from config import public_url
from handlers import HANDLERS
from handlers.http import GiveUp, Retry
from handlers.service import Attempt, service
from handlers.slack import alert_on_error, duration, plain, send
from stores import Database, get_store, jobs, refusals, spool
from stores.refusals import REASONS

PAUSED_FOR = 300.0  # seconds, before it is reported
AGAIN = 3600.0  # seconds between two messages about one trouble
CAUGHT_UP = 60.0  # seconds that no work waits for longer, once a handler is well again
ALERTS = alert_on_error.__name__
UNSIGNED = ("no secret is set here", "unsigned", "wrong signature")  # of refusals.REASONS

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """`since`: when it began, `latest`: when it was last noticed, in Unix seconds."""

    name: str
    since: float
    latest: float
    text: str


def report_troubles() -> None:
    """Tell Slack of what is wrong, unless it was told within the hour, and of each paused handler that is well again.

    Raises StoreError.
    """
    if not current_app.config["SLACK_WEBHOOK_URL"]:
        return
    g.attempt = Attempt(ALERTS)
    store = get_store()
    db = store.spool if store.failure and store.spool else store
    for trouble in find_troubles(store, db.now()):
        if trouble.latest > db.now() - AGAIN and _claim(db, trouble) and not _tell(trouble.text):
            db.execute("UPDATE troubles SET reported_at = 0 WHERE name = :name", {"name": trouble.name})
    if db is store:
        _report_recoveries(store)


def find_troubles(store: Database, now: float) -> Iterator[Trouble]:
    """What is wrong at `now`, as far as this process knows."""
    if waiting := spool.waiting(store):
        because = f": {store.failure}" if store.failure else ""
        yield Trouble("spooled", now, now, f"{_updates(waiting)} spooled{because}. They go on by themselves.")
    if store.failure:
        return
    for each in jobs.backlog(store):
        if each.handler == ALERTS:
            continue
        if each.failed_at:
            text = (
                f"{each.handler}: {_updates(each.failed)} failed for good. Last error: {each.error}."
                " Run it again on the dashboard."
            )
            yield Trouble(f"{each.handler} failed", each.failed_at, each.failed_at, text)
        paused_at = service(each.handler).breaker.paused_at
        if paused_at and now - paused_at >= PAUSED_FOR:
            text = f"{each.handler} is paused for {duration(now - paused_at)}. Last error: {each.error}."
            text += f" {_updates(each.pending)} pending."
            yield Trouble(f"{each.handler} paused", paused_at, now, text)
    for each in refusals.since(store, now):
        if each.reason in UNSIGNED:
            code, advice = REASONS[each.reason]
            text = f"{_updates(each.times)} refused: {code} {each.reason}. {advice}"
            yield Trouble(each.reason, each.latest, each.latest, text)


def _report_recoveries(store: Database) -> None:
    now = store.now()
    told = dict(store.query("SELECT name, since FROM troubles"))
    oldest = {each.handler: each.oldest for each in jobs.backlog(store)}
    for handler in (handler.__name__ for handler in HANDLERS):
        since, paused = told.get(f"{handler} paused"), service(handler).breaker.paused_at is not None
        if since is None or paused or (oldest.get(handler) or now) < now - CAUGHT_UP:
            continue
        values = {"name": f"{handler} paused", "since": since, "now": now}
        if store.execute("DELETE FROM troubles WHERE name = :name RETURNING 1", values):
            delivered = jobs.count_done(store, handler, since)
            text = f"{handler} is well again after {duration(now - since)}: {_updates(delivered)} delivered."
            if not _tell(text):
                store.execute(
                    "INSERT INTO troubles (name, since, reported_at) VALUES (:name, :since, :now)"
                    " ON CONFLICT (name) DO NOTHING",
                    values,
                )


def _claim(db: Database, trouble: Trouble) -> bool:
    """Whether this process is the one to report it now."""
    values = {"name": trouble.name, "since": trouble.since, "now": db.now()}
    return bool(
        db.execute(
            "INSERT INTO troubles AS t (name, since, reported_at) VALUES (:name, :since, :now) ON CONFLICT (name)"
            " DO UPDATE SET reported_at = :now WHERE t.reported_at <= :now - :again AND t.reported_at < :latest"
            " RETURNING 1",
            values | {"again": AGAIN, "latest": trouble.latest},
        )
    )


def _tell(text: str) -> bool:
    """Whether Slack has taken the message."""
    url = public_url()
    try:
        send(plain(f"Call status receiver: {text}") + (f"\n{url}" if url else ""))
    except (Retry, GiveUp) as error:
        logger.warning("trouble not reported", extra={"error": str(error)})
        return False
    return True


def _updates(number: int) -> str:
    return f"{number:,} update{'' if number == 1 else 's'}"
