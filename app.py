"""A receiver for a telephony provider's call status updates."""

import json
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from flask import Flask, Response, abort, current_app, jsonify, request
from marshmallow import ValidationError
from werkzeug.exceptions import ClientDisconnected, HTTPException

import commands
import config as settings
import dashboard
import logs
import stores
from config import clock
from dashboard.guesses import Guesses
from dispatch import dispatch
from handlers import active_calls
from refusals import NOT_KEPT, Refusals, count_refusal
from retries import start_retrying
from schemas import strict_json
from schemas.status_update import field_errors, isoformat, load
from signature import InvalidSignature, StaleSignature, is_local, verify
from stores import StoreError

RETRY_AFTER = 30  # seconds, for a message that could not be kept

logger = logging.getLogger(__name__)


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The receiver; `config` goes over the settings of the environment. Opens no connection."""
    logs.configure_logging()
    commands.check_port()
    app = Flask(__name__, static_folder=None)
    app.config.update(settings.load(), **(config or {}))
    app.json.sort_keys = False
    app.extensions |= {
        "store": stores.create(app.config),
        "redis": active_calls.connect(app.config),
        "services": {},
        "refusals": Refusals(),
        "guesses": Guesses(),
        "figures": {},
    }

    @app.before_request
    def start() -> None:
        """Not before: only a request tells a server from a `flask` command. gunicorn.conf.py did it already."""
        if not app.testing and "stop_retrying" not in app.extensions:
            settings.announce(app.config)
            start_retrying(app)

    app.add_url_rule(settings.WEBHOOK_PATH, view_func=status_update, methods=["POST"], provide_automatic_options=False)
    app.register_blueprint(dashboard.blueprint)
    app.register_error_handler(HTTPException, refusal)
    commands.register(app)
    return app


def status_update() -> tuple[str, int] | Response:
    """Take one message. 200 means that it is kept, and that each handler's work on it is done or pending."""
    deadline = time.monotonic() + current_app.config["DEADLINE"]
    received_at = datetime.fromtimestamp(stores.get_store().now(), UTC)
    body = _body()
    try:
        _verify_sender(body)
    except StaleSignature as error:
        with suppress(ValueError):
            _log_message("refused: stale", strict_json.loads(body), received_at)
        abort(401, str(error))
    except InvalidSignature as error:
        abort(401, str(error))
    try:
        document = strict_json.loads(body)
    except ValueError as error:
        abort(400, f"not JSON ({error}): send one JSON object in UTF-8")
    kind = _message(document).get("type")
    if isinstance(kind, str) and kind != "status-update":
        level = logging.WARNING if kind == "tool-calls" else logging.INFO
        logger.log(level, "not a status update, nothing done", extra={"fields": {"type": kind[:64]}})
        return jsonify({})
    try:
        dispatch(load(document, received_at), deadline)
    except ValidationError as error:
        wrong = field_errors(error)
        _log_message("refused: wrong fields", document, received_at, wrong=wrong)
        _count("not a status update")
        return jsonify(error="not a status update: correct these fields", fields=wrong), 422
    except StoreError as error:
        _log_message("not kept", document, received_at, error=str(error))
        _count(NOT_KEPT)
        return jsonify(error=f"{NOT_KEPT}, send it again"), 503, {"Retry-After": str(RETRY_AFTER)}
    return Response("OK", mimetype="text/plain")


def refusal(error: HTTPException) -> Response:
    """Every error as JSON that says what to do."""
    text = error.description
    if error.code in (404, 405):
        text = f"nothing here: POST status updates to {settings.WEBHOOK_PATH}"
    elif error.code == 413:
        text = f"too large: {settings.MAX_BODY} bytes at most"
    logger.warning("refused", extra={"error": f"{error.code} {text}"})
    _count(text)
    answer = error.get_response()
    answer.data = json.dumps({"error": text})
    answer.content_type = "application/json"
    return answer


def _body() -> bytes:
    try:
        body = request.get_data()
        # What comes in chunks is silently cut off at the limit.
        if len(body) == settings.MAX_BODY and request.content_length is None and request.environ["wsgi.input"].read(1):
            abort(413)
    except (OSError, ClientDisconnected):
        abort(400, "the body stopped halfway: send all of it")
    return body


def _verify_sender(body: bytes) -> None:
    """Raise InvalidSignature unless a secret signed the request, or none is set and it may come unsigned."""
    config, headers = current_app.config, request.headers
    if config["WEBHOOK_SECRET"]:
        signed = headers.get("X-Webhook-Timestamp"), headers.get("X-Webhook-Signature")
        verify(config["WEBHOOK_SECRET"], *signed, body, now=clock(), tolerance=config["WEBHOOK_TOLERANCE"])
    elif not (config["ALLOW_UNSIGNED"] or (is_local(request.environ) and "Origin" not in headers)):  # no web page's
        raise InvalidSignature("no secret is set here: set WEBHOOK_SECRET, or ALLOW_UNSIGNED=true")


def _count(refusal: str) -> None:
    """Count a refusal for the dashboard, unless `flask check` has asked for it with our own secret."""
    config, asked = current_app.config, request.headers.get("X-Check", "")
    with suppress(InvalidSignature):
        signed = (*asked.partition(":")[::2], b"check")
        return verify(config["WEBHOOK_SECRET"], *signed, now=clock(), tolerance=config["WEBHOOK_TOLERANCE"])
    count_refusal(refusal, clock())


def _message(document: Any) -> dict[str, Any]:
    message = document.get("message") if isinstance(document, dict) else None
    return message if isinstance(message, dict) else {}


def _log_message(event: str, document: Any, received_at: datetime, **fields: Any) -> None:
    """Log what is not kept; a status update whole, as a line that `flask import` takes."""
    message = _message(document)
    if message.get("type") != "status-update":
        logger.warning(event, extra={"fields": fields})
        return
    message = {name: value for name, value in message.items() if name != "assistant"}
    fields["received_at"] = isoformat(received_at)
    logger.error(event, extra={"update": message, "fields": fields})


app = create_app()
