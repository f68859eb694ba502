"""A receiver for a telephony provider's call status updates.

To follow an update, read on in this order: `intake/request.py` checks who sent it, `schemas/status_update.py` is the
message, `handlers/__init__.py` the list of handlers, `work/dispatch.py` keeps the update and lets `work/lanes.py` call
them, `stores/updates.py` is how it is kept, and `work/worker.py` does later what could not be done at once.
"""

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, jsonify, request

import commands
import dashboard
import logs
import stores
from config import WEBHOOK_PATH
from handlers import active_calls
from intake import refusals
from intake.request import parse_body, read_body, verify_sender
from schemas.document import other_type
from schemas.settings import load_config
from schemas.status_update import load_update
from work import lanes, threads
from work.dispatch import dispatch

logger = logging.getLogger(__name__)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The receiver; `config` goes over the settings of the environment. Opens no connection."""
    logs.configure_logging()
    app = Flask(__name__, static_folder=None)
    app.config.update(load_config(), **(config or {}))
    app.json.sort_keys = False  # type: ignore[attr-defined]  # Flask's default provider has it
    app.add_url_rule(WEBHOOK_PATH, view_func=status_update, methods=["POST"], provide_automatic_options=False)
    for part in (stores, active_calls, lanes, threads, refusals, dashboard, commands):
        part.init_app(app)
    app.before_request(any_slashes)
    return app


def any_slashes() -> Response | None:
    """Take posts to the webhook's path with doubled slashes, or one at the end: few senders follow redirects."""
    is_webhook = re.sub("/+", "/", request.path).rstrip("/") == WEBHOOK_PATH
    return status_update() if is_webhook and request.method == "POST" and request.url_rule is None else None


def status_update() -> Response:
    """Take one message. 200 means that it is kept, and that each handler's work on it is done or pending.

    Whatever is raised on the way becomes an answer in `refusals`.
    """
    body = read_body()
    verify_sender(body)
    document = parse_body(body)
    if kind := other_type(document):  # the provider sends all that it is subscribed to to one URL
        level = logging.WARNING if kind == "tool-calls" else logging.INFO  # it takes {} for the tool's result
        logger.log(level, "not a status update, nothing done", extra={"fields": {"type": kind[:64]}})
        return jsonify({})
    received_at = datetime.fromtimestamp(stores.get_store().now(), UTC)
    dispatch(load_update(document, received_at))
    return Response("OK", mimetype="text/plain")


app = create_app()
