"""Failed calls, to a chat: Slack, or what takes Slack's webhooks (Mattermost, Discord's `/slack`)."""

from flask import current_app

from handlers.outbound import post
from schemas.status_update import ENDED_WITH_ERROR, StatusUpdate
from stores import get_store


def alert_on_error(update: StatusUpdate) -> None:
    url = current_app.config["SLACK_WEBHOOK_URL"]
    if url and update.call.status == ENDED_WITH_ERROR:
        call, _ = get_store().call(update.call.id)
        post(url, {"text": alert_text(update, call.seconds if call else None)})


def alert_text(update: StatusUpdate, seconds: float | None) -> str:
    """The alert; `seconds` is how long the call lasted, where known."""
    line = " ".join(filter(None, (update.phone_number.name, update.phone_number.number)))
    lines = [
        f"Call error: {update.error or 'unknown'}",
        f"Line: {line or 'web call'}",
        f"Caller: {update.customer.number or 'unknown'}",
        f"Time: {update.timestamp:%Y-%m-%d %H:%M:%S} UTC",
    ]
    if seconds is not None:
        lines.append(f"Length: {int(seconds // 60)} min {int(seconds % 60)} s")
    return escape("\n".join(lines))


def escape(text: str) -> str:
    """The three characters that https://docs.slack.dev/messaging/formatting-message-text gives a meaning."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
