"""Who may see the dashboard and act on it."""

import hmac
import logging
import threading
from collections import Counter

from flask import Response, current_app, jsonify, make_response, render_template, request
from werkzeug.datastructures import WWWAuthenticate

from intake import refusals
from intake.signature import is_local
from schemas.times import clock
from stores.refusals import TOO_MANY_GUESSES

PUBLIC_ENDPOINTS = ("dashboard.healthz", "dashboard.static")  # they show no call, so they need no password
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, a form's Origin would be null
}
BY_ONE, BY_ALL = 10, 100  # wrong ones in a minute, from an address and in all

logger = logging.getLogger(__name__)


class LoginThrottle:
    """One process's wrong passwords in the current minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._minute, self._wrong = 0, Counter()

    def is_refused(self, address: str, wrong: bool, now: float) -> bool:
        """Whether a password from `address` is not even looked at; if it is, count it where it is `wrong`."""
        with self._lock:
            if self._minute != now // 60:
                self._minute, self._wrong = now // 60, Counter()
            if self._wrong[address] >= BY_ONE or self._wrong.total() >= BY_ALL:
                return True
            if wrong:
                self._wrong[address] += 1
            return False


def require_access() -> Response | None:
    """Refuse a request that lacks the dashboard's password or, where none is set, is not local."""
    password = current_app.config["DASHBOARD_PASSWORD"]
    if request.endpoint in PUBLIC_ENDPOINTS or (password is None and is_local(request.environ)):
        return None
    if password is None:
        text = "without a password only `flask run` shows calls, to this machine: set DASHBOARD_PASSWORD"
        return error_response(403, text)
    given = (request.authorization and request.authorization.password) or ""
    right = hmac.compare_digest(given.encode("utf-8", "surrogateescape"), password.encode())
    # The last of these is the one that the platform's own router has added.
    address = request.headers.get("X-Forwarded-For", request.remote_addr or "").rpartition(",")[2].strip()
    if current_app.extensions["login_throttle"].is_refused(address, bool(given) and not right, clock()):
        refusals.count(TOO_MANY_GUESSES)
        answer = error_response(429, f"{TOO_MANY_GUESSES}: wait a minute")
        answer.headers["Retry-After"] = "60"
        return answer
    if right:
        return None
    answer = error_response(401, "give the DASHBOARD_PASSWORD, with any user name")
    answer.www_authenticate = WWWAuthenticate("basic", {"realm": "calls", "charset": "UTF-8"})
    return answer


def add_headers(answer: Response) -> Response:
    answer.headers.update(HEADERS)
    if request.endpoint != "dashboard.static":
        answer.headers["Cache-Control"] = "no-store"
    return answer


def is_same_origin() -> bool:
    """Whether one of our own pages sent this. Browsers tell the site only over HTTPS, and the origin always."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin", "")
    return site == "same-origin" if site else origin.partition("://")[2] == request.host


def error_response(status: int, text: str) -> Response:
    """An error as a page for a browser, and as JSON for everything else."""
    logger.warning("refused", extra={"error": f"{status} {text}"})
    html = request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    return make_response(render_template("refused.html", text=text) if html else jsonify(error=text), status)
