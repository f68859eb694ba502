"""What people and platforms look at: the calls, what needs attention, and whether the receiver is well."""

import hmac
import json
import logging
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    current_app,
    jsonify,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import BadRequest

import refusals
from clock import clock
from config import WEBHOOK_PATH
from dashboard import listing
from dashboard.figures import PERIODS, figures, first_hour
from dashboard.guesses import Guesses
from dashboard.health import health
from dashboard.presenters import call_state, iso, kept_update, paused_at
from dispatch import retry_one
from handlers import HANDLERS
from refusals import TOO_MANY_GUESSES
from signature import is_local
from startup import dangers, warnings
from stores import Database, StoreError, calls, get_store, jobs, refusal_counts, spool, updates
from stores.export import every_update, exported

MOST = {"active": 300, "stale": 50}  # are listed; all are counted
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
blueprint.add_app_template_filter(paused_at)


def init_app(app: Flask) -> None:
    app.extensions |= {"guesses": Guesses(), "figures": {}}
    app.register_blueprint(blueprint)


@blueprint.before_request
def require_access() -> Response | None:
    """Refuse a request that lacks the dashboard's password or, where none is set, is not local."""
    password = current_app.config["DASHBOARD_PASSWORD"]
    if request.endpoint in OPEN or (password is None and is_local(request.environ)):
        return None
    if password is None:
        return _refuse(403, "without a password only `flask run` shows calls, to this machine: set DASHBOARD_PASSWORD")
    given = (request.authorization and request.authorization.password) or ""
    right = hmac.compare_digest(given.encode("utf-8", "surrogateescape"), password.encode())
    # The last of these is the one that the platform's own router has added.
    address = request.headers.get("X-Forwarded-For", request.remote_addr or "").rpartition(",")[2].strip()
    if current_app.extensions["guesses"].too_many(address, bool(given) and not right, clock()):
        refusals.count(TOO_MANY_GUESSES)
        answer = _refuse(429, f"{TOO_MANY_GUESSES}: wait a minute")
        answer.headers["Retry-After"] = "60"
        return answer
    if right:
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


@blueprint.errorhandler(400)
def nonsense(error: BadRequest) -> Response:
    return _refuse(400, error.description)


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """503 only when an update could not be kept now."""
    shown, status = health()
    return jsonify(shown), status


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
def calls_json() -> Response:
    """The overview, and in `recent` the page of the list that the filters ask for; `next` is the URL of the next."""
    db = get_store()
    page = listing.page(db)
    found = _overview(db) | {"recent": page.calls}
    shown = found | {name: [call_state(each) for each in found[name]] for name in ("active", "stale", "recent")}
    older = page.older and url_for(".calls_json", **listing.asked(), before=listing.before(page))
    return jsonify(shown | {"next": older, "last_24_hours": figures(db, db.now())})


@blueprint.get("/calls.<any(csv, jsonl):kind>")
def download(kind: str) -> Response:
    return listing.download(get_store(), kind)


@blueprint.get("/calls")
@blueprint.get("/calls/<path:call_id>")
def call(call_id: str | None = None) -> str | Response:
    """One call's timeline. Links have the id as `?id=`, as in a path `..` is not an id."""
    call_id, store = call_id or request.args.get("id", ""), get_store()
    state, found = calls.get(store, call_id), updates.of_call(store, call_id)
    if state is None and not found:
        return _refuse(404, "no call with this id is kept")
    return render_template(
        "call.html",
        id=call_id,
        call=state,
        updates=[kept_update(each) for each in found],
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
    store = get_store()
    if jobs.retry_now(store, failed=True, call_id=call_id, handler=name):
        retry_one(handler, store.now(), forced=True, call_id=call_id)
    return redirect(url_for(".call", id=call_id) if call_id else url_for(".index"), 303)


@blueprint.get("/export")
def export() -> Response:
    """What `flask export` prints, read from the store while it is sent."""
    lines = (json.dumps(exported(kept)) + "\n" for kept in every_update(get_store()))
    return Response(
        lines, mimetype="application/jsonl", headers={"Content-Disposition": "attachment; filename=calls.jsonl"}
    )


def _overview(db: Database) -> dict[str, Any]:
    stale = db.now() - current_app.config["STALE_AFTER"]
    return {
        "counts": {"active": calls.count_active(db, after=stale), "stale": calls.count_active(db, until=stale)},
        "active": calls.active(db, after=stale, limit=MOST["active"]),
        "stale": calls.active(db, until=stale, limit=MOST["stale"]),
    }


def _page() -> dict[str, Any]:
    """The list and, unless the URL asks for a part of it, all that is above. `figures` has what to choose from, too."""
    db, asked, days = get_store(), listing.asked(), request.args.get("days", type=int)
    page = listing.page(db)
    shown = {"page": page, "older": listing.before(page), "asked": asked, "before": request.args.get("before")}
    shown["wanted"] = listing.filters()
    if shown["before"] or asked:
        shown["part"] = True
    else:
        shown |= _now(db)
    if request.endpoint == "dashboard.index" or not shown.get("part"):
        shown["figures"] = figures(db, db.now(), days if days in PERIODS else 1)
    return shown


def _now(store: Database) -> dict[str, Any]:
    """What is on, what needs attention, and what a receiver without updates has to say."""
    config, now = current_app.config, store.now()
    current_app.extensions["refusals"].flush(now)
    backlog = jobs.backlog(store)
    return _overview(store) | {
        "undone": [each for each in backlog if each.failed or (each.oldest or now) < now - PENDING_TOO_LONG],
        "refusals": refusal_counts.since(store, first_hour(now)),
        "reasons": refusals.REASONS,
        "spooled": (spool.waiting(store), store.failure()),
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
