"""Requests that are not taken: how each is answered, logged and counted."""

import logging
import threading
from collections import Counter
from contextlib import suppress
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from marshmallow import ValidationError
from werkzeug.exceptions import HTTPException

from clock import clock
from config import WEBHOOK_PATH
from schemas.status_update import STATUS_UPDATE, field_errors
from schemas.strict_json import parse_json
from schemas.times import iso
from signature import InvalidSignature, verify
from stores import StoreError, get_store, refusal_counts
from stores.records import RefusalCount

NOT_AN_UPDATE, NOT_KEPT, STALE = "not a status update", "could not be kept", "stale"
TOO_MANY_GUESSES = "too many wrong passwords"
_STRANGE = "The provider sends no such requests: find out who does, or which proxy changes them."
# Why a request is refused: the status code, and what whoever runs this receiver has to do. Only these are counted, and
# no sender's text is kept.
REASONS = {
    "no secret is set here": (401, "Set WEBHOOK_SECRET to the provider's webhook_secret."),
    "unsigned": (401, "Set webhook_secret on every assistant at the provider."),
    "malformed X-Webhook-Timestamp": (401, _STRANGE),
    "malformed X-Webhook-Signature": (401, _STRANGE),
    "wrong signature": (
        401,
        "WEBHOOK_SECRET must be the webhook_secret of every assistant at the provider; commas separate several.",
    ),
    STALE: (
        401,
        "Set this machine's clock right, or raise WEBHOOK_TOLERANCE. The log has these updates, for flask import.",
    ),
    "too large": (413, "The provider's updates are far smaller: look who sends them."),
    "the body stopped halfway": (400, "The network in front of this receiver cuts requests off."),
    "not JSON": (400, _STRANGE),
    NOT_AN_UPDATE: (422, "The log names the wrong fields, and has these updates whole."),
    TOO_MANY_GUESSES: (
        429,
        "Somebody guesses DASHBOARD_PASSWORD: make it long and random. Ten wrong ones from an address, or a hundred in"
        " all, close the dashboard for the rest of the minute.",
    ),
    NOT_KEPT: (503, "The log says why, and has these updates whole."),
}
LOGGED_WHOLE = (STALE, NOT_AN_UPDATE, NOT_KEPT)  # as they may be updates of the provider's
RETRY_AFTER = 30  # seconds, for a message that could not be kept
FLUSH_EVERY = 1.0  # seconds

logger = logging.getLogger(__name__)


class Refusal(Exception):
    """A request that is not taken for a `reason` in REASONS; the text also says what its sender has to do."""

    def __init__(self, reason: str, what_to_do: str):
        super().__init__(f"{reason}: {what_to_do}")
        self.reason = reason


class RefusalCounter:
    """One process's counts since they were last written: a flood of refused requests costs one write a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: Counter[str] = Counter()
        self._latest: dict[str, float] = {}
        self._flushed_at = 0.0

    def count(self, reason: str, now: float) -> None:
        with self._lock:
            self._times[reason] += 1
            self._latest[reason] = now

    def flush(self, now: float) -> None:
        """Write the counts into the store unless that was done within a second; what it does not take is kept."""
        with self._lock:
            if not self._times or abs(now - self._flushed_at) < FLUSH_EVERY:
                return
            times, latest, self._flushed_at = self._times, self._latest, now
            self._times, self._latest = Counter(), {}
        try:
            refusal_counts.add(get_store(), [RefusalCount(reason, n, latest[reason]) for reason, n in times.items()])
        except StoreError as error:
            logger.warning("refusals not counted yet", extra={"error": str(error)})
            with self._lock:
                self._times += times
                self._latest = latest | self._latest


def init_app(app: Flask) -> None:
    app.extensions["refusals"] = RefusalCounter()
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
    refusals: RefusalCounter = current_app.extensions["refusals"]
    refusals.count(reason, clock())
    if reason != NOT_KEPT:  # the sender has waited for the store long enough
        refusals.flush(clock())


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
