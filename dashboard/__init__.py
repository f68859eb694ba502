"""What people and platforms look at: the calls, what needs attention, and whether the receiver is well."""

import hmac
import json
import logging
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, make_response, redirect, render_template, request, url_for
from werkzeug.datastructures import WWWAuthenticate

from commands.transfer import exported
from config import WEBHOOK_PATH, clock, dangers, on_and_off, warnings
from dashboard.content import call_state, first_hour, iso, kept_update, last_24_hours
from dispatch import retry_one
from handlers import HANDLERS
from signature import is_local
from stores import StoreError, get_store

MOST = {"active": 300, "stale": 50, "recent": 50}  # are listed; all are counted
PENDING_TOO_LONG = 60.0  # seconds
OPEN = ("dashboard.healthz", "dashboard.static")  # they show no call, so they need no password
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer, a form's Origin would be null
}

logger = logging.getLogger(__name__)
blueprint = Blueprint(
    "dashboard", __name__, template_folder="templates", static_folder="static", static_url_path="/static"
)
blueprint.add_app_template_filter(iso)


@blueprint.before_request
def require_access() -> Response | None:
    """Refuse a request that lacks the dashboard's password or, where none is set, does not come from this machine."""
    password = current_app.config["DASHBOARD_PASSWORD"]
    if request.endpoint in OPEN or (password is None and is_local(request.environ)):
        return None
    if password is None:
        return _refuse(
            403, "the calls are shown to this machine only: set DASHBOARD_PASSWORD to see them from elsewhere"
        )
    given = (request.authorization and request.authorization.password) or ""
    if hmac.compare_digest(given.encode("utf-8", "surrogateescape"), password.encode()):
        return None
    answer = _refuse(401, "give the DASHBOARD_PASSWORD, with any user name")
    answer.www_authenticate = WWWAuthenticate("basic", {"realm": "calls", "charset": "UTF-8"})
    return answer


@blueprint.after_request
def add_headers(answer: Response) -> Response:
    answer.headers.update(HEADERS)
    if request.endpoint != "dashboard.static":
        answer.headers["Cache-Control"] = "no-store"
    return answer


@blueprint.errorhandler(StoreError)
def unreadable(error: StoreError) -> Response:
    return _refuse(503, f"the store does not answer: {error}")


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """503 only when an update could not be kept now."""
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
        "last_update_at": iso(last_update),
    }
    if spooled or reason:
        health |= {"spooled": spooled, "spooled_because": reason}
    return jsonify(health), 200


@blueprint.get("/")
def index() -> str:
    return render_template("index.html", **_page())


@blueprint.get("/live")
def live() -> Response:
    """The parts of the page that change, or 304 while they have not."""
    answer = make_response(render_template("live.html", **_page()))
    answer.add_etag()
    return answer.make_conditional(request)


@blueprint.get("/calls.json")
def calls() -> Response:
    found = _overview()
    return jsonify(found | {name: [call_state(each) for each in found[name]] for name in MOST})


@blueprint.get("/calls/<path:call_id>")
def call(call_id: str) -> str | Response:
    """One call's timeline."""
    state, updates = get_store().call(call_id)
    if state is None and not updates:
        return _refuse(404, "no call with this id is kept")
    return render_template(
        "call.html",
        id=call_id,
        call=state,
        updates=[kept_update(each) for each in updates],
        unset=[name for name in on_and_off(current_app.config)[1] if name.endswith("WEBHOOK_URL")],
    )


@blueprint.post("/run-again")
def run_again() -> Response:
    """Make a handler's pending and failed work due, of one call where given, and do the first of it at once."""
    if not _same_origin():
        return _refuse(403, "only a page of this dashboard can do that")
    call_id, name = request.form.get("call_id"), request.form.get("handler")
    handler = next((each for each in HANDLERS if each.__name__ == name), None)
    if handler is None:
        return _refuse(404, "no handler has this name")
    now = clock()
    if get_store().hurry(now, failed=True, call_id=call_id, handler=name):
        retry_one(handler, now, probe=True)
    return redirect(url_for(".call", call_id=call_id) if call_id else url_for(".index"), 303)


@blueprint.get("/export")
def export() -> Response:
    """What `flask export` prints, read from the store while it is sent."""
    lines = (json.dumps(exported(kept)) + "\n" for kept in get_store().updates())
    return Response(
        lines, mimetype="application/jsonl", headers={"Content-Disposition": "attachment; filename=calls.jsonl"}
    )


def _overview(search: str = "") -> dict[str, Any]:
    store, now = get_store(), clock()
    stale = now - current_app.config["STALE_AFTER"]
    return {
        "counts": {"active": store.count_active(after=stale), "stale": store.count_active(until=stale)},
        "active": store.active(after=stale, limit=MOST["active"]),
        "stale": store.active(until=stale, limit=MOST["stale"]),
        "recent": store.recent(MOST["recent"], search),
        "last_24_hours": last_24_hours(store.figures(first_hour(now)), now),
    }


def _page() -> dict[str, Any]:
    """The overview, what needs attention, and what a receiver without updates has to say."""
    store, config, now = get_store(), current_app.config, clock()
    search = request.args.get("search", "").strip()
    if search.startswith("+"):
        search = "".join(search.split())
    current_app.extensions["refusals"].flush(now)
    backlog = store.backlog()
    return _overview(search) | {
        "search": search,
        "undone": [each for each in backlog if each.failed or (each.oldest or now) < now - PENDING_TOO_LONG],
        "refusals": store.refusals(first_hour(now)),
        "spooled": store.spooled(),
        "dangers": dangers(config),
        "warnings": warnings(config),
        "url": request.headers.get("X-Forwarded-Proto", request.scheme) + "://" + request.host + WEBHOOK_PATH,
        "signed": bool(config["WEBHOOK_SECRET"]),
    }


def _same_origin() -> bool:
    """Whether one of our own pages sent this. Browsers tell the site only over HTTPS, and the origin always."""
    site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin", "")
    return site == "same-origin" if site else origin.partition("://")[2] == request.host


def _refuse(status: int, text: str) -> Response:
    """An error as a page for a browser, and as JSON for everything else."""
    logger.warning("refused", extra={"error": f"{status} {text}"})
    html = request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"
    return make_response(render_template("refused.html", text=text) if html else jsonify(error=text), status)
