"""What people and platforms look at: the calls, what needs attention, and whether the receiver is well."""

import json
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
from werkzeug.exceptions import BadRequest

from config import WEBHOOK_PATH, dangers, public_url, warnings
from dashboard import listing
from dashboard.access import LoginThrottle, add_headers, error_response, is_same_origin, require_access
from dashboard.figures import PERIODS, figures, first_hour
from dashboard.health import health
from dashboard.metrics import CONTENT_TYPE, metrics
from dashboard.presenters import call_state, is_off, kept_update, service_state
from schemas.times import iso
from stores import Database, StoreError, calls, get_refusals, get_store, jobs, refusals, spool, updates
from stores.export import every_update, exported
from work.lanes import get_lane

MAX_LISTED = {"active": 300, "stale": 50}  # all are counted
PENDING_TOO_LONG = 60.0  # seconds

blueprint = Blueprint(
    "dashboard", __name__, template_folder="templates", static_folder="static", static_url_path="/static"
)
blueprint.add_app_template_filter(iso)
blueprint.add_app_template_filter(service_state)
blueprint.add_app_template_filter(is_off)
blueprint.before_request(require_access)
blueprint.after_request(add_headers)


def init_app(app: Flask) -> None:
    app.extensions |= {"login_throttle": LoginThrottle(), "figures": {}}
    app.register_blueprint(blueprint)


@blueprint.errorhandler(StoreError)
def store_unavailable(error: StoreError) -> Response:
    return error_response(503, f"the store does not answer: {error}")


@blueprint.errorhandler(400)
def bad_request(error: BadRequest) -> Response:
    return error_response(400, error.description)


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """503 only when an update could not be kept now."""
    shown, status = health()
    return jsonify(shown), status


@blueprint.get("/metrics")
def prometheus() -> Response:
    return Response(metrics(get_store()), content_type=CONTENT_TYPE)


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
        return error_response(404, "no call with this id is kept")
    return render_template("call.html", id=call_id, call=state, updates=[kept_update(each) for each in found])


@blueprint.post("/run-again")
def run_again() -> Response:
    """Make a handler's pending and failed work due, of one call where given, and let its worker ask the service at
    once."""
    if not is_same_origin():
        return error_response(403, "only a page of this dashboard can do that")
    call_id, name = request.form.get("call_id"), request.form.get("handler")
    lane = get_lane(name or "")
    if lane is None:
        return error_response(404, "no handler that is on has this name")
    jobs.retry_now(get_store(), [lane.name], failed=True, call_id=call_id)
    lane.ask_now()
    return redirect(url_for(".call", id=call_id) if call_id else url_for(".index"), 303)


@blueprint.get("/export")
def export() -> Response:
    """What `flask export` prints, read from the store while it is sent."""
    lines = (json.dumps(exported(kept)) + "\n" for kept in every_update(get_store()))
    return Response(
        lines, mimetype="application/jsonl", headers={"Content-Disposition": "attachment; filename=updates.jsonl"}
    )


def _overview(db: Database) -> dict[str, Any]:
    stale = db.now() - current_app.config["STALE_AFTER"]
    return {
        "counts": {"active": calls.count_active(db, after=stale), "stale": calls.count_active(db, until=stale)},
        "active": calls.active(db, after=stale, limit=MAX_LISTED["active"]),
        "stale": calls.active(db, until=stale, limit=MAX_LISTED["stale"]),
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
    get_refusals().flush(store, now)
    backlog = jobs.backlog(store)
    return _overview(store) | {
        "undone": [each for each in backlog if each.failed or (each.oldest or now) < now - PENDING_TOO_LONG],
        "refusals": refusals.since(store, first_hour(now)),
        "reasons": refusals.REASONS,
        "spooled": (spool.waiting(store), store.failure),
        "dangers": dangers(config),
        "warnings": warnings(config),
        "url": public_url() + WEBHOOK_PATH,
        "signed": bool(config["WEBHOOK_SECRET"]),
    }
