"""Failed calls, to a chat: Slack, or what takes Slack's webhooks (Mattermost, Discord's `/slack`).

Many alike errors make one message per ALERT_INTERVAL: an update whose error was just reported stays pending until then.
"""

import re
from urllib.parse import quote, urlsplit

from flask import current_app

from config import public_url
from handlers.errors import Deferred, Retry
from handlers.http import post
from schemas.status_update import StatusUpdate
from schemas.times import clock
from stores import calls, get_store, jobs, locks

MAX_ERROR = 3000
LATE = 3600  # seconds
SLACK = re.compile(r"(.+\.)?slack(-gov)?\.com")


def alert_on_error(update: StatusUpdate) -> None:
    config, store = current_app.config, get_store()
    group = f"alert: {update.error_group}"
    patience = sum(config["WORKER_PATIENCE"]) + 1  # longer than a post can take: nobody else reports such an error
    if not locks.acquire(store, group, patience, longest=config["ALERT_INTERVAL"]):
        wait = (locks.ends_at(store, group) or 0.0) - store.now()
        raise Deferred("such an error was just reported, or is being", after=wait)
    covered = jobs.with_same_error(store, "alert_on_error", update)
    call = calls.get(store, update.call.id)
    text = alert_text(update, call.seconds if call else None, len(covered), clock(), public_url())
    try:
        send(text)
    except Exception:
        locks.renew(store, group, 0)
        raise
    jobs.finish(store, "alert_on_error", covered)
    locks.renew(store, group, config["ALERT_INTERVAL"])


def send(text: str) -> None:
    """Post a message to the chat. Raises what `post` does."""
    url = current_app.config["SLACK_WEBHOOK_URL"]
    answer = post(url, {"text": text})
    if SLACK.fullmatch(urlsplit(url).hostname) and answer != "ok":
        raise Retry(f"answered 200 but {answer[:100]}")


def alert_text(update: StatusUpdate, seconds: float | None, more: int, now: float, url: str | None) -> str:
    """The alert, for an update and `more` alike: `seconds` is how long the call lasted, `url` where the app is seen."""
    line = " ".join(filter(None, (update.phone_number.name, update.phone_number.number)))
    late = now - update.received_at.timestamp()
    lines = [
        f"Call error: {update.error or 'unknown'}"[:MAX_ERROR],
        f"and {more} more" if more else None,
        f"Line: {line or 'web call'}",
        f"Caller: {update.customer.number or 'unknown'}",
        f"Time: {update.timestamp:%Y-%m-%d %H:%M:%S} UTC",
        f"Length: {duration(seconds)}" if seconds is not None else None,
        f"Late: told {duration(late)} after it was received" if late > LATE else None,
    ]
    told = "\n".join(plain(line) for line in lines if line)
    return f"{told}\n{url.rstrip('/')}/calls?id={quote(update.call.id, safe='')}" if url else told


def plain(text: str) -> str:
    """`text` so that it can make no line, mention or link of its own.

    Escapes the characters that https://docs.slack.dev/messaging/formatting-message-text gives a meaning, and puts a
    zero-width space into what chats make mentions and links of by themselves.
    """
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("@", "@\u200b").replace("://", ":\u200b//")


def duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
