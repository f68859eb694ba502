"""Requests that are not taken: how each is answered, logged and counted."""

import logging
from contextlib import suppress
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from config import WEBHOOK_PATH
from intake.signature import InvalidSignature, verify
from schemas.status_update import STATUS_UPDATE, field_errors
from schemas.strict_json import parse_json
from schemas.times import clock, iso
from stores import StoreError, get_refusals, get_store
from stores.refusals import NOT_AN_UPDATE, NOT_KEPT, REASONS, STALE

RETRY_AFTER = 30  # seconds, for a message that could not be kept
LOGGED_WHOLE = (STALE, NOT_AN_UPDATE, NOT_KEPT)  # as they may be updates of the provider's

logger = logging.getLogger(__name__)


class Refusal(Exception):
    """A request that is not taken for a `reason` in REASONS; the text also says what its sender has to do."""

    def __init__(self, reason: str, what_to_do: str):
        super().__init__(f"{reason}: {what_to_do}")
        self.reason = reason


def init_app(app: Flask) -> None:
    for kind in (Refusal, InvalidSignature):
        app.register_error_handler(kind, lambda error: refuse(error.reason, str(error)))
    app.register_error_handler(ValidationError, _wrong_fields)
    app.register_error_handler(StoreError, _not_kept)
    app.register_error_handler(HTTPException, _http_error)


def _wrong_fields(error: ValidationError) -> Response:
    return refuse(NOT_AN_UPDATE, f"{NOT_AN_UPDATE}: correct these fields", field_errors(error))


def _not_kept(error: StoreError) -> Response:
    answer = refuse(NOT_KEPT, f"{NOT_KEPT}: send it again", cause=str(error))
    answer.headers["Retry-After"] = str(RETRY_AFTER)
    return answer


def _http_error(error: HTTPException) -> Response:
    text = error.description
    if error.code in (404, 405):
        text = f"nothing here: POST status updates to {WEBHOOK_PATH}"
    logger.warning("refused", extra={"error": f"{error.code} {text}"})
    answer = error.get_response()
    answer.data, answer.content_type = jsonify(error=text).data, "application/json"
    return answer


def refuse(reason: str, text: str, fields: dict[str, list[str]] | None = None, cause: str = "") -> Response:
    """Count and log a refused request, and answer it with a `text` that says what to do. `fields`: what is wrong with
    each, `cause`: what only the log tells."""
    status, _ = REASONS[reason]
    logged = {"wrong": fields} if fields else {}
    message = _sent_update() if reason in LOGGED_WHOLE else None
    if message is None:
        logger.warning("refused", extra={"error": f"{status} {text}", "fields": logged})
    else:  # a line that `flask import` takes
        event, logged["received_at"] = "not kept" if reason == NOT_KEPT else "refused", iso(get_store().now())
        logger.error(event, extra={"error": cause or f"{status} {text}", "update": message, "fields": logged})
    if not _is_from_flask_check():
        count(reason)
    answer = jsonify({"error": text} | ({"fields": fields} if fields else {}))
    answer.status_code = status
    return answer


def count(reason: str) -> None:
    """Count a request that is refused now for a `reason` in REASONS."""
    get_refusals().count(reason, clock())
    if reason != NOT_KEPT:  # the sender has waited for the store long enough
        get_refusals().flush(get_store(), clock())


def _sent_update() -> dict[str, Any] | None:
    """The status update that was sent, less the assistant; None where it is none."""
    with suppress(ValueError, TypeError, KeyError):
        message = parse_json(request.get_data())["message"]
        if isinstance(message, dict) and message.get("type") == STATUS_UPDATE:
            return {name: value for name, value in message.items() if name != "assistant"}
    return None


def _is_from_flask_check() -> bool:
    """Whether `flask check --url` has asked for it, which signs that with our own secret."""
    config, (timestamp, _, signature) = current_app.config, request.headers.get("X-Check", "").partition(":")
    try:
        tolerance = config["WEBHOOK_TOLERANCE"]
        verify(config["WEBHOOK_SECRET"], timestamp, signature, b"check", now=clock(), tolerance=tolerance)
    except InvalidSignature:
        return False
    return True
