"""Who may see the dashboard and act on it."""

import hmac
import logging

from flask import Response, current_app, jsonify, make_response, render_template, request
from werkzeug.datastructures import WWWAuthenticate

from intake.signature import is_local

PUBLIC_ENDPOINTS = ("dashboard.healthz", "dashboard.static")  # they show no call, so they need no password
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, a form's Origin would be null
}
logger = logging.getLogger(__name__)


def has_access() -> bool:
    """Whether a request has the dashboard's password or, where none is set, is local."""
    password = current_app.config["DASHBOARD_PASSWORD"]
    if password is None:
        return is_local(request.environ)
    sent = (request.authorization and request.authorization.password) or ""
    return hmac.compare_digest(sent.encode("utf-8", "surrogateescape"), password.encode())


def require_access() -> Response | None:
    """Refuse a request that may not see calls."""
    if request.endpoint in PUBLIC_ENDPOINTS or has_access():
        return None
    if current_app.config["DASHBOARD_PASSWORD"] is None:
        text = "without a password only `flask run` shows calls, to this machine: set DASHBOARD_PASSWORD"
        return error_response(403, text)
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
