"""Requests that are not taken: raised as a Refusal, then logged, counted and answered here."""

import logging
from contextlib import suppress
from hashlib import sha256
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from config import WEBHOOK_PATH
from intake.request import message_of, message_type, read_body, verify_sender
from intake.signature import Refusal
from schemas.document import STATUS_UPDATE, field_errors, named_fields
from schemas.strict_json import parse_json
from schemas.times import clock, iso
from stores import StoreError, get_refusals
from stores.refusals import NOT_AN_UPDATE, NOT_JSON, NOT_KEPT, REASONS, STALE, WRONG_PATH

RETRY_AFTER = 30  # seconds, for a message that could not be kept
LOGGED_WHOLE = (STALE, WRONG_PATH, NOT_AN_UPDATE, NOT_KEPT)  # as they may be updates of the provider's
COMMAND_AGENT = "call-status-receiver-command"  # the User-Agent of our own commands, who see what is refused themselves

logger = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    app.register_error_handler(Refusal, refuse)
    app.register_error_handler(ValidationError, _wrong_fields)
    app.register_error_handler(StoreError, _not_kept)
    app.register_error_handler(HTTPException, _http_error)


def refuse(refusal: Refusal, fields: dict[str, list[str]] | None = None, cause: str = "") -> Response:
    """Log, count and answer a refusal. `fields`: what is wrong with each, `cause`: what only the log tells."""
    code, _ = REASONS[refusal.reason]
    log(refusal, cause or f"{code} {refusal}", {"wrong": fields} if fields else {})
    if request.user_agent.string != COMMAND_AGENT:
        get_refusals().count(refusal.reason)
    response = jsonify({"error": str(refusal)} | ({"fields": fields} if fields else {}))
    response.status_code = code
    return response


def _wrong_fields(error: ValidationError) -> Response:
    return refuse(Refusal(NOT_AN_UPDATE, "correct these fields"), field_errors(error))


def _not_kept(error: StoreError) -> Response:
    get_refusals().not_kept_at = clock()
    response = refuse(Refusal(NOT_KEPT, "send it again"), cause=str(error))
    response.headers["Retry-After"] = str(RETRY_AFTER)
    return response


def _http_error(error: HTTPException) -> AnyResponse:
    text = error.description
    if error.code in (404, 405):
        advice = f"POST status updates to {WEBHOOK_PATH}"
        if request.method == "POST" and _is_signed():
            return refuse(Refusal(WRONG_PATH, advice))
        text = f"nothing here: {advice}"
    logger.warning("refused", extra={"error": f"{error.code} {text}"})
    response = error.get_response()
    response.data, response.content_type = jsonify(error=text).data, "application/json"
    return response


def log(refusal: Refusal, error: str, details: dict[str, Any]) -> None:
    """What may be an update of the provider's is logged as a line that `flask import` takes."""
    if refusal.reason in LOGGED_WHOLE and (message := _update()):
        event = "not kept" if refusal.reason == NOT_KEPT else "refused"
        details["received_at"] = iso(clock())
        logger.error(event, extra={"error": error, "update": message, "fields": details})
        return
    if refusal.reason == NOT_JSON:
        body = request.get_data()
        details |= {"length": len(body), "sha256": sha256(body).hexdigest()}
    logger.warning("refused", extra={"error": error, "fields": details})


def _update() -> dict[str, Any]:
    """What the schema names of the status update that was sent; nothing where it is none."""
    with suppress(ValueError):
        document = parse_json(request.get_data())
        if message_type(document) == STATUS_UPDATE:
            return named_fields(message_of(document))
    return {}


def _is_signed() -> bool:
    try:
        verify_sender(read_body())
    except Refusal:
        return False
    return bool(current_app.config["WEBHOOK_SECRET"])
