"""What the commands share: how they fail, and how they post to a receiver."""

import logging
import os
import socket
import ssl
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import click
import requests
from flask import current_app
from requests.utils import DEFAULT_CA_BUNDLE_PATH as CA_BUNDLE

from config import WEBHOOK_PATH
from handlers import handlers_off
from intake.signature import sign
from schemas.document import STATUS_UPDATE
from schemas.settings import is_url
from stores import StoreError

PATIENCE = 2.0  # seconds for a host to connect, and to answer


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
    """Why nobody takes a connection at the host of `url`; empty where somebody does. Nothing is asked."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or {"http": 80}.get(parts.scheme, 443))
    try:
        with socket.create_connection(address, PATIENCE) as connection:
            if parts.scheme == "https":
                context = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE", CA_BUNDLE))
                context.wrap_socket(connection, server_hostname=parts.hostname).close()
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def post(session: requests.Session, url: str, body: bytes, secret: str | None, age: int = 0) -> str:
    """Post a raw body as the provider does, signed `age` seconds ago if there is a secret. Returns what came of it."""
    headers = {"Content-Type": "application/json", "X-Webhook-Event": STATUS_UPDATE}
    if secret:
        timestamp = int(time.time()) - age
        headers |= {"X-Webhook-Timestamp": f"{timestamp}", "X-Webhook-Signature": sign(secret, timestamp, body)}
    try:
        answer = session.post(url, data=body, headers=headers, timeout=30, allow_redirects=False)
    except requests.RequestException as error:
        return f"without an answer: {type(error).__name__}"
    return f"answered {answer.status_code}"


def first_secret() -> str | None:
    return next(iter(current_app.config["WEBHOOK_SECRET"]), None)


def confirm_off(yes: bool, what: str) -> None:
    """Unless `yes`, ask whether to go on where handlers are off in this shell; `what` says what they miss."""
    if not yes and (names := handlers_off(current_app.config)):
        click.confirm(f"Off here, and so they {what}: {', '.join(names)}. Go on?", abort=True, err=True)
