"""What people and platforms look at: the calls, what needs attention, and whether the receiver is well."""

import json
from typing import Any

from flask import (
    Blueprint,
    Flask,
    Response,
    jsonify,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import BadRequest, NotFound

from dashboard import listing, page
from dashboard.access import add_headers, error_response, has_access, is_same_origin, require_access
from dashboard.figures import figures
from dashboard.health import health
from dashboard.metrics import CONTENT_TYPE, metrics
from dashboard.presenters import call_state, cut, is_off, ordinal, service_state, timeline, whole_error
from schemas.statuses import ERRORS
from schemas.times import iso
from stores import StoreError, calls, get_store, jobs, updates
from stores.export import every_update, exported
from work.lanes import get_lane

blueprint = Blueprint(
    "dashboard", __name__, template_folder="templates", static_folder="static", static_url_path="/static"
)
for template_filter in (iso, service_state, is_off, cut, ordinal):
    blueprint.add_app_template_filter(template_filter)
blueprint.add_app_template_test(ERRORS.__contains__, "error_status")
blueprint.before_request(require_access)
blueprint.after_request(add_headers)


def init_app(app: Flask) -> None:
    app.extensions["figures"] = {}
    app.register_blueprint(blueprint)


@blueprint.errorhandler(StoreError)
def store_unavailable(error: StoreError) -> Response:
    return error_response(503, f"the store does not answer: {error}")


@blueprint.errorhandler(400)
def bad_request(error: BadRequest) -> Response:
    return error_response(400, error.description)


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """503 when an update could not be kept. Who has access is also told why."""
    answer, status = health(details=has_access())
    return jsonify(answer), status


@blueprint.get("/metrics")
def prometheus() -> Response:
    return Response(metrics(get_store()), content_type=CONTENT_TYPE)


@blueprint.before_app_request
def unknown_page() -> Response | None:
    """Answer a browser that looks for a page that is not there; whoever else does gets JSON of the app's own."""
    is_browser = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
    if is_browser and isinstance(request.routing_exception, NotFound):
        return add_headers(error_response(404, "there is no such page"))
    return None


@blueprint.get("/")
def index() -> str:
    return render_template("index.html", **page.contents())


@blueprint.get("/live")
def live() -> Response:
    """The parts of the page that change, or 304 while there is nothing new."""
    version = page.version(get_store())
    known = request.if_none_match.contains_weak(version)
    answer = Response(status=304) if known else make_response(render_template("live.html", **page.contents()))
    answer.set_etag(version)
    return answer


@blueprint.get("/calls.json")
def calls_json() -> Response:
    """The overview, and in `recent` the page of the list that the filters ask for; `next` is the URL of the next."""
    db = get_store()
    calls_page = listing.page(db)
    overview = page.overview(db, page.MAX_LISTED) | {"recent": calls_page.calls}
    overview |= {name: [call_state(call) for call in overview[name]] for name in ("active", "stale", "recent")}
    query: dict[str, Any] = listing.query() | {"before": listing.before(calls_page)}
    older = calls_page.older and url_for(".calls_json", **query)
    return jsonify(overview | {"next": older, "last_24_hours": figures(db, db.now())})


@blueprint.get("/calls.<any(csv, jsonl):kind>")
def download(kind: str) -> Response:
    return listing.download(get_store(), kind)


@blueprint.get("/calls")
@blueprint.get("/calls/<path:call_id>")
def call(call_id: str | None = None) -> Response:
    """One call's timeline, or 304 while it is the same. Links have the id as `?id=`, as in a path `..` is not an id."""
    call_id, db = call_id or request.args.get("id", ""), get_store()
    record, stored = calls.get(db, call_id), updates.of_call(db, call_id)
    if record is None and not stored:
        return error_response(404, "no call with this id is kept")
    answer = make_response(
        render_template(
            "call.html",
            id=call_id,
            call=record,
            error=record and whole_error(record, stored),
            stale_at=page.stale_at(db),
            events=timeline(stored, jobs.failed_attempts(db, call_id)),
        )
    )
    answer.add_etag()
    answer.make_conditional(request)
    return answer


@blueprint.post("/run-again")
def run_again() -> ResponseReturnValue:
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
