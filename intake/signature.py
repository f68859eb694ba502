"""Who sent a request: the provider, who signs it, or somebody on this machine.

The provider sends `X-Webhook-Timestamp`, Unix seconds, and `X-Webhook-Signature`, `sha256=` and the hex HMAC-SHA256 of
`{timestamp}.{raw body}`; its older pages show the hex without the prefix, so both are taken.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from typing import Any


class Refusal(Exception):
    """A request that is not taken for a `reason` in REASONS. The text also says what its sender has to do, and the
    log has the `details`."""

    def __init__(self, reason: str, what_to_do: str, **details: Any):
        super().__init__(f"{reason}: {what_to_do}")
        self.reason, self.details = reason, details


def sign(secret: str, timestamp: int | str, body: bytes) -> str:
    """The value of `X-Webhook-Signature` for the raw `body` sent at `timestamp` (Unix seconds)."""
    text = f"{timestamp}.".encode() + body
    return "sha256=" + hmac.new(secret.encode(), text, hashlib.sha256).hexdigest()


def verify(
    secrets: Iterable[str], timestamp: str | None, signature: str | None, body: bytes, *, now: float, tolerance: float
) -> None:
    """Raise Refusal unless one of `secrets` signed the raw `body` at `timestamp`.

    `now` and `tolerance` are in seconds; a tolerance of 0 takes a signature of any age.
    """
    if not timestamp or not signature:
        raise Refusal("unsigned", "send X-Webhook-Timestamp and X-Webhook-Signature")
    if not re.fullmatch(r"[0-9]{1,12}", timestamp):
        raise Refusal("malformed X-Webhook-Timestamp", "send one, in Unix seconds")
    if not re.fullmatch(r"(sha256=)?[0-9a-f]{64}", signature):
        raise Refusal("malformed X-Webhook-Signature", "send one, sha256= and 64 lower-case hex digits")
    digest = f"sha256={signature.removeprefix('sha256=')}".encode()
    if not any([hmac.compare_digest(digest, sign(secret, timestamp, body).encode()) for secret in secrets]):
        raise Refusal("wrong signature", "use the same webhook_secret here (WEBHOOK_SECRET) and at the provider")
    if tolerance and abs(now - int(timestamp)) > tolerance:
        raise Refusal("stale", f"X-Webhook-Timestamp is more than {tolerance} s from this server's clock")


# How the headers begin that proxies and tunnels add; those with others of their own add one of these, too.
FORWARDED = ("HTTP_CF_", "HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_FORWARDED_", "HTTP_X_REAL_IP")


def is_local(environ: Mapping[str, str]) -> bool:
    """Whether `flask run` serves a request (its WSGI environ) from this machine itself and through no known proxy.

    Under gunicorn none is: what comes through a raw TCP tunnel looks just like what comes from this machine.
    """
    host = environ.get("HTTP_HOST", "")
    return (
        environ.get("SERVER_SOFTWARE", "").startswith("Werkzeug/")
        and re.fullmatch(r"127(\.\d{1,3}){3}|::1", environ.get("REMOTE_ADDR", "")) is not None
        and re.fullmatch(r"(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d+)?", host, re.ASCII) is not None
        and not any(name.startswith(FORWARDED) for name in environ)
    )
