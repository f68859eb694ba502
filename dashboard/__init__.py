"""What people and platforms look at: the calls, and whether the receiver is well."""

import hmac
import logging
from datetime import UTC, datetime
from typing import Any

from flask import Blueprint, Response, abort, current_app, jsonify, request
from werkzeug.datastructures import WWWAuthenticate

from config import clock
from schemas.status_update import isoformat
from signature import is_local
from stores import CallState, StoreError, get_store

RECENT = 50

logger = logging.getLogger(__name__)
blueprint = Blueprint("dashboard", __name__)


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """503 only when an update could not be kept now. It counts and shows no call, so it needs no password."""
    store = get_store()
    try:
        last_update, backlog, (spooled, reason) = store.check(), store.backlog(), store.spooled()
    except StoreError as error:
        logger.error("an update could not be kept now", extra={"error": str(error)})
        return jsonify(status="error", store=store.name, error=str(error)), 503
    oldest = min((each.oldest for each in backlog if each.oldest is not None), default=None)
    health = {
        "status": "ok",
        "store": store.name,
        "pending": sum(each.pending for each in backlog),
        "failed": sum(each.failed for each in backlog),
        "oldest_pending_s": oldest and round(clock() - oldest, 1),
        "last_update_at": _time(last_update),
    }
    if spooled or reason:
        health |= {"spooled": spooled, "spooled_because": reason}
    return jsonify(health), 200


@blueprint.get("/calls.json")
def calls() -> Response:
    require_access()
    store = get_store()
    now, stale_after = clock(), current_app.config["STALE_AFTER"]
    started = store.active()
    active = [call for call in started if now - call.start_received_at < stale_after]
    return jsonify(
        active=[_call(call) for call in active],
        stale=[_call(call) for call in started[len(active) :]],
        recent=[_call(call) for call in store.recent(RECENT)],
    )


def require_access() -> None:
    """Abort unless the request has the dashboard's password or, where none is set, comes from this machine."""
    password = current_app.config["DASHBOARD_PASSWORD"]
    if password is None:
        if not is_local(request.environ):
            abort(403, "the calls are shown to this machine only: set DASHBOARD_PASSWORD to see them from elsewhere")
        return
    given = (request.authorization and request.authorization.password) or ""
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), password.encode()):
        abort(401, "give the DASHBOARD_PASSWORD, with any user name", www_authenticate=WWWAuthenticate("basic"))


def _call(call: CallState) -> dict[str, Any]:
    return {
        "id": call.id,
        "status": call.status,
        "type": call.type,
        "line": call.line,
        "line_name": call.line_name,
        "customer": call.customer,
        "started_at": _time(call.started_at),
        "ended_at": _time(call.ended_at),
        "seconds": call.seconds,
        "error": call.error,
        "end_reason": call.end_reason,
        "received_at": _time(call.received_at),
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else isoformat(datetime.fromtimestamp(seconds, UTC))
