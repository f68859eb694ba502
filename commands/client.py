"""What the commands share: how they fail, and how they post to a receiver."""

import json
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import click
import requests

from config import WEBHOOK_PATH
from handlers import HANDLERS
from intake.refusals import COMMAND_AGENT
from intake.signature import sign
from schemas.document import STATUS_UPDATE
from schemas.settings import is_url
from schemas.times import isoformat
from stores import StoreError
from work.lanes import get_lane

PATIENCE = 2.0  # seconds for a host to take a connection


class Command(click.Command):
    """A command that logs to stderr, as stdout is for its result, and says in one line that the store fails."""

    def invoke(self, ctx: click.Context) -> Any:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)
        try:
            return super().invoke(ctx)
        except StoreError as error:
            raise click.ClickException(str(error)) from None


def webhook_url(url: str) -> str:
    """`url` as given, or its webhook where only a server is named."""
    if not is_url(url):
        raise click.BadParameter(f"{url} is not an http:// or https:// URL")
    return url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}{WEBHOOK_PATH}"


def require_connection(url: str) -> None:
    """End the command in one line where nobody answers at the host of `url`."""
    if error := connection_error(url):
        raise click.ClickException(f"no connection to {urlsplit(url).netloc.rpartition('@')[2]}: {error}")


def connection_error(url: str) -> str:
    """Why nobody takes a connection at the host of `url`; empty where somebody does. Nothing is sent."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), PATIENCE).close()
    except (OSError, UnicodeError) as error:
        return str(error)
    return ""


def update_body(call_id: str, status: str, moment: datetime, customer: str, **more: Any) -> bytes:
    """The body of an update of a made-up call, such as the provider sends; `more` are further fields of its message."""
    message = {
        "type": STATUS_UPDATE,
        "timestamp": isoformat(moment),
        "call": {"id": call_id, "type": "inbound_phone_call", "status": status},
        "phone_number": {"number": "+31850835037", "name": "Front desk"},
        "customer": {"number": customer},
        **more,
    }
    return json.dumps({"message": message}).encode()


def post(url: str, body: bytes, secrets: Sequence[str]) -> str:
    """Post a raw body as the provider does, signed with the first of `secrets`, if there is any. Returns what came of
    it."""
    headers = {"Content-Type": "application/json", "X-Webhook-Event": STATUS_UPDATE, "User-Agent": COMMAND_AGENT}
    if secrets:
        timestamp = int(time.time())
        headers |= {"X-Webhook-Timestamp": f"{timestamp}", "X-Webhook-Signature": sign(secrets[0], timestamp, body)}
    try:
        answer = requests.post(url, data=body, headers=headers, timeout=30, allow_redirects=False)
    except requests.RequestException as error:
        return f"without an answer: {type(error).__name__}"
    return f"answered {answer.status_code}"


def report(results: Counter[str], right: Collection[str]) -> None:
    """Print how often each result came. Where one is not `right`, the command ends with 1."""
    for result, count in results.most_common():
        click.echo(f"{count} {result}")
    if not results.keys() <= set(right):
        sys.exit(1)


def require_handlers(yes: bool, what: str) -> None:
    """Unless `yes`, end the command where handlers are off in this shell; `what` says what they would miss."""
    names = [handler.__name__ for handler in HANDLERS if not get_lane(handler.__name__)]
    if names and not yes:
        raise click.ClickException(f"off here, and so they {what}: {', '.join(names)}. Go on with --yes")
