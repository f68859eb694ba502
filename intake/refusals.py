"""Requests that are not taken: raised as a Refusal, then logged, counted and answered here."""

import logging
from contextlib import suppress
from typing import Any

from flask import Flask, Response, current_app, jsonify, make_response, request
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from config import WEBHOOK_PATH
from intake.request import read_body, verify_sender
from intake.signature import Refusal
from schemas.document import field_errors, named_fields, other_type
from schemas.strict_json import parse_json
from schemas.times import clock, iso
from stores import StoreError, get_refusals
from stores.refusals import NOT_AN_UPDATE, NOT_KEPT, REASONS, STALE, WRONG_PATH

LOGGED_WHOLE = (STALE, WRONG_PATH, NOT_AN_UPDATE, NOT_KEPT)  # as they may be updates of the provider's
COMMAND_AGENT = "call-status-receiver-command"  # the User-Agent of our own commands, who see what is refused themselves

logger = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    app.register_error_handler(Refusal, refuse)
    app.register_error_handler(ValidationError, _wrong_fields)
    app.register_error_handler(StoreError, _not_kept)
    app.register_error_handler(HTTPException, _http_error)


def refuse(refusal: Refusal) -> Response:
    """Log, count and answer a refusal. What may be an update of the provider's is logged as `flask import` takes it."""
    code, _ = REASONS[refusal.reason]
    details = {"error": f"{code} {refusal}"} | refusal.details
    if refusal.reason in LOGGED_WHOLE and (update := _update()):
        logger.error("refused", extra={"update": update, "fields": details | {"received_at": iso(clock())}})
    else:
        logger.warning("refused", extra={"fields": details})
    if request.user_agent.string != COMMAND_AGENT:
        get_refusals().count(refusal.reason)
    wrong = refusal.details.get("wrong")
    return make_response(jsonify({"error": str(refusal)} | ({"fields": wrong} if wrong else {})), code)


def _update() -> Any:
    """What the schema names of the status update that was sent; None where it is none."""
    with suppress(ValueError):
        document = parse_json(request.get_data())
        if isinstance(document, dict) and not other_type(document):
            return named_fields(document).get("message")
    return None


def _wrong_fields(error: ValidationError) -> Response:
    return refuse(Refusal(NOT_AN_UPDATE, "correct these fields", wrong=field_errors(error.messages)))


def _not_kept(error: StoreError) -> Response:
    get_refusals().not_kept_at = clock()
    return make_response(refuse(Refusal(NOT_KEPT, "send it again", error=str(error))), {"Retry-After": "30"})  # seconds


def _http_error(error: HTTPException) -> Response:
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
