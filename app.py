"""A receiver for a telephony provider's call status updates.

To follow an update, read on in this order: `schemas/status_update.py` is the message, `handlers/__init__.py` the list
of handlers, `work/dispatch.py` keeps the update and calls them, `stores/updates.py` is how it is kept, and
`work/retries.py` does later what could not be done at once.
"""

import logging
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

import commands
import dashboard
import handlers
import logs
import stores
from config import MAX_BODY, WEBHOOK_PATH, load_config
from intake import refusals
from intake.signature import InvalidSignature, Refusal, is_local, verify
from schemas.status_update import STATUS_UPDATE, load_update
from schemas.strict_json import parse_json
from schemas.times import clock
from stores.refusals import ENCODED, NOT_JSON
from work import retries
from work.dispatch import dispatch

logger = logging.getLogger(__name__)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The receiver; `config` goes over the settings of the environment. Opens no connection."""
    logs.configure_logging()
    app = Flask(__name__, static_folder=None)
    app.config.update(load_config(), **(config or {}))
    app.json.sort_keys = False
    app.add_url_rule(WEBHOOK_PATH, view_func=status_update, methods=["POST"], provide_automatic_options=False)
    for part in (stores, handlers, retries, refusals, dashboard, commands):
        part.init_app(app)
    app.before_request(any_slashes)
    return app


def any_slashes() -> Response | None:
    """Take what is posted to the webhook's path with doubled slashes, or one at the end: few senders are redirected."""
    is_webhook = re.sub("/+", "/", request.path).rstrip("/") == WEBHOOK_PATH
    return status_update() if is_webhook and request.method == "POST" and request.url_rule is None else None


def status_update() -> Response:
    """Take one message. 200 means that it is kept, and that each handler's work on it is done or pending.

    Whatever is raised on the way becomes an answer in `refusals`.
    """
    deadline = time.monotonic() + current_app.config["DEADLINE"]
    body = read_body()
    verify_sender(body)
    document = parse_body(body)
    if (kind := message_type(document)) != STATUS_UPDATE:
        return pass_over(kind)
    received_at = datetime.fromtimestamp(stores.get_store().now(), UTC)
    dispatch(load_update(document, received_at), deadline)
    return Response("OK", mimetype="text/plain")


def read_body() -> bytes:
    """The raw body, MAX_BODY bytes at most and not encoded. Raises Refusal."""
    try:
        body = request.get_data()
        # What comes in chunks is silently cut off at the limit.
        if len(body) == MAX_BODY and request.content_length is None and request.environ["wsgi.input"].read(1):
            raise RequestEntityTooLarge
        if len(body) < (request.content_length or 0):
            raise ClientDisconnected
    except RequestEntityTooLarge:
        raise Refusal("too large", f"{MAX_BODY} bytes at most") from None
    except (OSError, ClientDisconnected):
        raise Refusal("the body stopped halfway", "send all of it") from None
    if (encoding := request.headers.get("Content-Encoding", "").strip().lower()) not in ("", "identity"):
        raise Refusal(ENCODED, f"send it as it is, without Content-Encoding: {encoding[:64]}")
    return body


def verify_sender(body: bytes) -> None:
    """Raise InvalidSignature unless a secret signed the request, or none is set and it may come unsigned."""
    config, headers = current_app.config, request.headers
    if config["WEBHOOK_SECRET"]:
        signed = headers.get("X-Webhook-Timestamp"), headers.get("X-Webhook-Signature")
        verify(config["WEBHOOK_SECRET"], *signed, body, now=clock(), tolerance=config["WEBHOOK_TOLERANCE"])
        return
    local = is_local(request.environ) and "Origin" not in headers  # a browser adds it to what another site's page posts
    if not (config["ALLOW_UNSIGNED"] or local):
        raise InvalidSignature("no secret is set here", "set WEBHOOK_SECRET, or ALLOW_UNSIGNED=true")


def parse_body(body: bytes) -> Any:
    """The JSON document in `body`. Raises Refusal."""
    try:
        return parse_json(body)
    except ValueError as error:
        raise Refusal(NOT_JSON, f"{error}. Send one JSON object in UTF-8") from None


def message_type(document: Any) -> str:
    """The type of the message. One without a type is checked as a status update: the answer names what is wrong."""
    message = document.get("message") if isinstance(document, dict) else None
    kind = message.get("type") if isinstance(message, dict) else None
    return kind if isinstance(kind, str) else STATUS_UPDATE


def pass_over(kind: str) -> Response:
    """Answer a message of another type: the provider sends all that it is subscribed to to one URL."""
    level = logging.WARNING if kind == "tool-calls" else logging.INFO  # the provider takes {} for the tool's result
    logger.log(level, "not a status update, nothing done", extra={"fields": {"type": kind[:64]}})
    return jsonify({})


app = create_app()
