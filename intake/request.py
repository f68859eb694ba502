"""What a request has to be before anybody looks at what it says: whole, signed, and JSON."""

from hashlib import sha256
from typing import Any

from flask import current_app, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from config import MAX_BODY
from intake.signature import Refusal, is_local, verify
from schemas.strict_json import parse_json
from schemas.times import clock
from stores.refusals import ENCODED, NOT_JSON


def read_body() -> bytes:
    """The raw body, MAX_BODY bytes at most and not encoded. Raises Refusal."""
    try:
        body = request.get_data()  # what comes in chunks is silently cut off at MAX_CONTENT_LENGTH, a byte more
        if len(body) > MAX_BODY:
            raise RequestEntityTooLarge
        if len(body) < (request.content_length or 0):
            raise ClientDisconnected
    except RequestEntityTooLarge:
        raise Refusal("too large", f"{MAX_BODY} bytes at most") from None
    except (OSError, ClientDisconnected, ParseException):
        raise Refusal("the body stopped halfway", "send all of it") from None
    if (encoding := request.headers.get("Content-Encoding", "").strip().lower()) not in ("", "identity"):
        raise Refusal(ENCODED, f"send it as it is, without Content-Encoding: {encoding[:64]}")
    return body


def verify_sender(body: bytes) -> None:
    """Raise Refusal unless a secret signed the request, or none is set and it may come unsigned."""
    config, headers = current_app.config, request.headers
    if config["WEBHOOK_SECRET"]:
        timestamp, signature = headers.get("X-Webhook-Timestamp"), headers.get("X-Webhook-Signature")
        verify(config["WEBHOOK_SECRET"], timestamp, signature, body, now=clock(), tolerance=config["WEBHOOK_TOLERANCE"])
        return
    local = is_local(request.environ) and "Origin" not in headers  # a browser adds it to what another site's page posts
    if not (config["ALLOW_UNSIGNED"] or local):
        raise Refusal("no secret is set here", "set WEBHOOK_SECRET, or ALLOW_UNSIGNED=true")


def parse_body(body: bytes) -> Any:
    """The JSON document in `body`. Raises Refusal."""
    try:
        return parse_json(body)
    except ValueError as error:
        digest = sha256(body).hexdigest()  # the log has no piece of the body
        raise Refusal(NOT_JSON, f"{error}. Send one JSON object in UTF-8", length=len(body), sha256=digest) from None
