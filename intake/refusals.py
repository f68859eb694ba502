"""Requests that are not taken: raised as a Refusal, then logged, counted and answered here."""

import logging
from contextlib import suppress
from typing import Any

from flask import Flask, Response, current_app, jsonify, make_response, request
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from config import WEBHOOK_PATH
from intake.request import message_of, message_type, read_body, verify_sender
from intake.signature import Refusal
from schemas.document import STATUS_UPDATE, field_errors, named_fields
from schemas.strict_json import parse_json
from schemas.times import clock, iso
from stores import StoreError, get_refusals
from stores.refusals import NOT_AN_UPDATE, NOT_KEPT, REASONS, STALE, WRONG_PATH

LOGGED_WHOLE = (STALE, WRONG_PATH, NOT_AN_UPDATE, NOT_KEPT)  # as they may be updates of the provider's
COMMAND_AGENT = "call-status-receiver-command"  # the User-Agent of our own commands, who see what is refused themselves

Answer = tuple[Response, int]

logger = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    app.register_error_handler(Refusal, refuse)
    app.register_error_handler(ValidationError, _wrong_fields)
    app.register_error_handler(StoreError, _not_kept)
    app.register_error_handler(HTTPException, _http_error)


def refuse(refusal: Refusal, fields: dict[str, list[str]] | None = None, cause: str = "") -> Answer:
    """Log, count and answer a refusal. `fields`: what is wrong with each, `cause`: what only the log tells.

    What may be an update of the provider's is logged as a line that `flask import` takes.
    """
    code, _ = REASONS[refusal.reason]
    error = cause or f"{code} {refusal}"
    details: dict[str, Any] = {"wrong": fields} if fields else {}
    if refusal.reason in LOGGED_WHOLE and (update := _update()):
        details["received_at"] = iso(clock())
        logger.error("refused", extra={"error": error, "update": update, "fields": details})
    else:
        logger.warning("refused", extra={"error": error, "fields": details})
    if request.user_agent.string != COMMAND_AGENT:
        get_refusals().count(refusal.reason)
    return jsonify({"error": str(refusal)} | ({"fields": fields} if fields else {})), code


def _update() -> dict[str, Any]:
    """What the schema names of the status update that was sent; nothing where it is none."""
    with suppress(ValueError):
        document = parse_json(request.get_data())
        if message_type(document) == STATUS_UPDATE:
            return named_fields(message_of(document))
    return {}


def _wrong_fields(error: ValidationError) -> Answer:
    return refuse(Refusal(NOT_AN_UPDATE, "correct these fields"), field_errors(error.messages))


def _not_kept(error: StoreError) -> tuple[Response, int, dict[str, str]]:
    get_refusals().not_kept_at = clock()
    return *refuse(Refusal(NOT_KEPT, "send it again"), cause=str(error)), {"Retry-After": "30"}  # seconds


def _http_error(error: HTTPException) -> Response | Answer:
    text = error.description
    if error.code in (404, 405):
        advice = f"POST status updates to {WEBHOOK_PATH}"
        if request.method == "POST" and current_app.config["WEBHOOK_SECRET"]:
            with suppress(Refusal):
                verify_sender(read_body())
                return refuse(Refusal(WRONG_PATH, advice))
        text = f"nothing here: {advice}"
    logger.warning("refused", extra={"error": f"{error.code} {text}"})
    response = make_response(error.get_response())
    response.data, response.content_type = jsonify(error=text).data, "application/json"
    return response
