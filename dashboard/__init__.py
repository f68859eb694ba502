"""What people and platforms look at: the calls, what needs attention, and whether the receiver is well."""

from flask import Blueprint, Flask, Response, jsonify, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import NotFound

from dashboard import listing, page
from dashboard.access import add_headers, error_response, has_access, is_same_origin, require_access
from dashboard.figures import figures, remembered
from dashboard.health import health
from dashboard.metrics import metrics
from dashboard.timeline import timeline
from schemas.statuses import ERRORS
from schemas.times import iso
from stores import StoreError, calls, get_store, jobs, search
from stores.export import exported_lines
from work.lanes import get_lane

blueprint = Blueprint("dashboard", __name__, template_folder="templates", static_folder="static")
blueprint.add_app_template_filter(iso)
blueprint.add_app_template_global(get_lane)
blueprint.add_app_template_test(ERRORS.__contains__, "error_status")
blueprint.before_request(require_access)
blueprint.after_request(add_headers)


def init_app(app: Flask) -> None:
    app.register_blueprint(blueprint)


@blueprint.errorhandler(StoreError)
def store_unavailable(error: StoreError) -> Response:
    return error_response(503, f"the store does not answer: {error}")


@blueprint.before_app_request
def unknown_page() -> Response | None:
    """Answer a browser that looks for a page that is not there; whoever else does gets JSON of the app's own."""
    is_browser = request.method == "GET" and "text/html" in request.headers.get("Accept", "")
    if is_browser and isinstance(request.routing_exception, NotFound):
        return add_headers(error_response(404, "there is no such page"))
    return None


@blueprint.get("/healthz")
def healthz() -> tuple[Response, int]:
    """503 when an update could not be kept. Who has access is also told why."""
    answer, status = health(details=has_access())
    return jsonify(answer), status


@blueprint.get("/metrics")
def prometheus() -> Response:
    return Response(metrics(get_store()), content_type="text/plain; version=0.0.4; charset=utf-8")


@blueprint.get("/")
def index() -> str:
    choices = remembered("choices", 60.0, lambda: search.choices(get_store()))
    return render_template("index.html", choices=choices, **page.contents())


@blueprint.get("/live")
def live() -> Response:
    """The parts of the page that change, or 304 while there is nothing new."""
    version = page.version(get_store())
    is_known = request.if_none_match.contains_weak(version)
    answer = Response(status=304) if is_known else make_response(render_template("live.html", **page.contents()))
    answer.set_etag(version)
    return answer


@blueprint.get("/calls.json")
def calls_json() -> Response:
    """The overview, and in `recent` the page of the list that the filters ask for; `next` is the URL of the next."""
    db = get_store()
    query, _, recent = listing.read_url(db)
    answer = page.overview(db, most=300) | {"recent": recent.calls}
    answer |= {name: [*map(listing.call_state, answer[name])] for name in ("active", "stale", "recent")}
    older = url_for(".calls_json", before=recent.older, **query) if recent.older else None
    return jsonify(answer | {"next": older, "last_24_hours": figures(db)})


@blueprint.get("/calls.csv")
def calls_csv() -> Response:
    """All calls that the filters let through, read from the store while they are sent."""
    db = get_store()
    _, filters, newest = listing.read_url(db)
    return Response(listing.csv_lines(listing.every_call(db, filters, newest)), mimetype="text/csv")


@blueprint.get("/export")
def export() -> Response:
    """What `flask export` prints, read from the store while it is sent."""
    return Response(exported_lines(get_store()), mimetype="application/jsonl")


@blueprint.get("/calls")
def call() -> Response:
    """One call's timeline, or 304 while it is the same. Its id is `?id=`, as in a path `..` is not an id."""
    db, call_id = get_store(), request.args.get("id", "")
    parts = {"id": call_id, "call": calls.get(db, call_id), "events": timeline(db, call_id)}
    if not (parts["call"] or parts["events"]):
        return error_response(404, "no call with this id is kept")
    answer = make_response(render_template("call.html", **parts, stale_at=calls.stale_at(db)))
    answer.add_etag()
    answer.make_conditional(request)
    return answer


@blueprint.post("/run-again")
def run_again() -> ResponseReturnValue:
    """Make a handler's pending and failed work due, of one call where given, and let its worker ask the service at
    once."""
    if not is_same_origin():
        return error_response(403, "only a page of this dashboard can do that")
    call_id, lane = request.form.get("call_id"), get_lane(request.form.get("handler", ""))
    if lane is None:
        return error_response(404, "no handler that is on has this name")
    jobs.retry_now(get_store(), lane.name, failed=True, call_id=call_id)
    lane.ask_now()
    return redirect(url_for(".call", id=call_id) if call_id else url_for(".index"), 303)
