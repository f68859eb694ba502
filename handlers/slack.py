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
from stores import calls, get_store, jobs, locks

LONGEST = 2000  # characters of a message, as Discord takes no more
SLACK = (".slack.com", ".slack-gov.com")  # how the names of its hosts end


def alert_on_error(update: StatusUpdate) -> None:
    config, store = current_app.config, get_store()
    group = f"alert: {update.error_group}"
    patience = sum(config["WORKER_PATIENCE"]) + 1  # longer than a post can take: nobody else reports such an error
    if not locks.acquire(store, group, patience, longest=config["ALERT_INTERVAL"]):
        end = locks.ends_at(store, group) or 0.0  # none where it was let go of meanwhile
        raise Deferred("such an error was just reported, or is being", after=max(end - store.now(), 0.0))
    others = jobs.with_same_error(store, "alert_on_error", update)
    call = calls.get(store, update.call.id)
    seconds = call.seconds if call else None
    text = alert_text(update, seconds, len(others), public_url(), slack=_is_slack())
    try:
        send(text)
    except Exception:
        locks.release(store, group)
        raise
    jobs.finish(store, "alert_on_error", others)
    locks.renew(store, group, config["ALERT_INTERVAL"])


def send(text: str) -> None:
    """Post a message to the chat. Raises what `post` does."""
    answer = post(current_app.config["SLACK_WEBHOOK_URL"], {"text": text})
    if _is_slack() and answer != "ok":
        raise Retry(f"answered 200 but {answer[:100]}")


def alert_text(update: StatusUpdate, seconds: float | None, more: int, url: str | None, *, slack: bool = False) -> str:
    """The alert, for an update and `more` alike, LONGEST characters at most: `seconds` is how long the call lasted,
    `url` where the app is seen. Slack shows each reader the time in their own zone, as
    https://docs.slack.dev/messaging/formatting-message-text has dates."""
    line = " ".join(filter(None, (update.phone_number.name, update.phone_number.number)))
    time = f"{update.timestamp:%Y-%m-%d %H:%M:%S} UTC"
    if slack:
        time = f"<!date^{update.timestamp.timestamp():.0f}^{{date_num}} {{time_secs}}|{time}>"
    link = f"{url}/calls?id={quote(update.call.id, safe='')}"
    lines = [
        f"and {more} more" if more else None,
        _cut(f"Line: {line or 'web call'}", 200),
        _cut(f"Caller: {update.customer.number or 'unknown'}", 200),
        f"Time: {time}",
        f"Length: {duration(seconds)}" if seconds is not None else None,
        link if url and len(link) < LONGEST / 2 else None,
    ]
    rest = "\n".join(filter(None, lines))
    return _cut(f"Call error: {update.error or 'unknown'}", LONGEST - len(rest) - 1) + f"\n{rest}"


def _cut(text: str, length: int) -> str:
    """`text` made plain, and so much of that as has `length` characters."""
    text = plain(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _is_slack() -> bool:
    return (urlsplit(current_app.config["SLACK_WEBHOOK_URL"]).hostname or "").endswith(SLACK)


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
