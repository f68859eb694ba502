"""What the commands share: how they fail, and how they post to a receiver."""

import json
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

from config import WEBHOOK_PATH
from handlers import handlers_off
from intake.signature import sign
from schemas.settings import is_url
from stores import StoreError

CONNECT = 2.0  # seconds


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


def connection_error(url: str, certificates: str | None = None) -> str:
    """Why the host of `url` cannot be reached, in words; empty where it can. Nothing is requested.

    `certificates`: the file or directory of those that are trusted, if not the ones that requests trusts.
    """
    try:
        _connect(url, certificates or requests.utils.DEFAULT_CA_BUNDLE_PATH)
    except (socket.gaierror, UnicodeError):
        return "name not found"
    except ssl.SSLCertVerificationError as error:
        return f"certificate not trusted: {error.verify_message}"
    except ssl.SSLError:
        return "no valid TLS"
    except TimeoutError:
        return f"no answer in {CONNECT:.0f} s"
    except OSError as error:
        return (error.strerror or type(error).__name__).lower()
    return ""


def _connect(url: str, certificates: str) -> None:
    parts = urlsplit(url)
    tls = parts.scheme == "https"
    with socket.create_connection((parts.hostname, parts.port or (443 if tls else 80)), CONNECT) as connection:
        if tls:
            file, directory = (None, certificates) if os.path.isdir(certificates) else (certificates, None)
            context = ssl.create_default_context(cafile=file, capath=directory)
            context.wrap_socket(connection, server_hostname=parts.hostname).close()


def post(session: requests.Session, url: str, message: dict[str, Any], secret: str | None) -> tuple[str, float]:
    """Post one message, signed if there is a secret. Returns what came of it, and the seconds it took."""
    body = json.dumps({"message": message}).encode()
    headers = {"Content-Type": "application/json", "X-Webhook-Event": message["type"], **signed(body, secret)}
    started = time.monotonic()
    try:
        answer = session.post(url, data=body, headers=headers, timeout=30, allow_redirects=False)
        result = f"answered {answer.status_code}"
    except requests.RequestException as error:
        result = f"without an answer: {type(error).__name__}"
    return result, time.monotonic() - started


def signed(body: bytes, secret: str | None, age: int = 0) -> dict[str, str]:
    """The headers by which the provider signs a raw body, `age` seconds ago; none without a secret."""
    if not secret:
        return {}
    timestamp = int(time.time()) - age
    return {"X-Webhook-Timestamp": f"{timestamp}", "X-Webhook-Signature": sign(secret, timestamp, body)}


def new_session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def first_secret() -> str | None:
    return next(iter(current_app.config["WEBHOOK_SECRET"]), None)


def confirm_off(yes: bool, what: str) -> None:
    """Unless `yes`, ask whether to go on where handlers are off in this shell; `what` says what they miss."""
    names = handlers_off(current_app.config)
    if names and not yes:
        click.confirm(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} off here, and {what}. Go on?",
            abort=True,
            err=True,
        )
