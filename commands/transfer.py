"""`flask export` and `flask import`: what is kept, as lines of JSON."""

import json
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import BinaryIO

import click
from flask import current_app
from flask.cli import with_appcontext
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from commands.client import Command, post, report, require_handlers, webhook_url
from schemas.document import other_type
from schemas.status_update import load_update
from schemas.strict_json import parse_json
from schemas.times import parse_time
from stores import Refused, get_store, keep_as_is
from stores.export import exported_lines
from stores.records import Job
from work.lanes import get_lanes


@click.command(cls=Command)
@click.option("--since", type=parse_time, metavar="YYYY-MM-DD[THH:MM]", default="1970-01-01", help="Only from then on.")
@with_appcontext
def export(since: datetime) -> None:
    """Print every kept update as a line of JSON, those that are spooled first."""
    for line in exported_lines(get_store(), since.timestamp()):
        click.echo(line, nl=False)


def _time() -> fields.Function:
    """A time in ISO 8601, as Unix seconds."""
    return fields.Function(deserialize=lambda text: parse_time(str(text)).timestamp(), load_default=None)


class _JobSchema(Schema):
    handler = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(("pending", "failed", "done")))
    attempts = fields.Integer(load_default=0)
    error = fields.String(load_default=None)
    due_at = _time()
    first_tried_at = _time()
    done_at = _time()


class _LineSchema(Schema):
    """What a line of an export, or of a log, says beside the message."""

    received_at = _time()
    last_received_at = _time()
    times = fields.Integer(load_default=1)
    handlers = fields.List(fields.String(), load_default=None)
    jobs = fields.List(fields.Nested(_JobSchema, unknown=EXCLUDE), load_default=None)


_LINE = _LineSchema()  # built once


@click.command("import", cls=Command)
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--url", type=webhook_url, help="Post the lines to this receiver instead, signed with WEBHOOK_SECRET.")
@click.option("--yes", is_flag=True, help="Go on, whichever handlers are off here.")
@with_appcontext
def import_(file: BinaryIO, url: str | None, yes: bool) -> None:
    """Keep what FILE (or stdin) has: lines of an export, or of a log with messages that were refused or not kept.

    Lines without a message are passed over. What an export says is pending, failed or done is so again; a message from
    a log is pending for every handler that is on here and wants it. Importing twice changes nothing.
    """
    results = Counter[str]()
    with click.progressbar(file, label="Importing", file=sys.stderr, show_pos=True) as lines:
        for number, line in enumerate(lines, 1):
            try:
                results[_take(line, url, yes)] += 1
            except (ValueError, ValidationError, Refused) as error:
                results["wrong"] += 1
                click.echo(f"line {number}: {error}", err=True)
    report(results, ["kept", "kept already", "spooled", "passed over", "answered 200"])


def _take(line: bytes, url: str | None, yes: bool) -> str:
    """Keep what a line has or, with `url`, post it. Returns what came of it.

    Raises ValueError, ValidationError or Refused where it makes no sense."""
    document = parse_json(line[line.index(b"{") :]) if b"{" in line else {}
    if "message" not in document or other_type(document):
        return "passed over"
    if url:
        return post(url, json.dumps({"message": document["message"]}).encode(), current_app.config["WEBHOOK_SECRET"])
    values = _LINE.load(document, unknown=EXCLUDE)
    received_at = values["received_at"] or get_store().now()
    update = load_update(document, datetime.fromtimestamp(received_at, UTC))
    handlers, jobs = values["handlers"], [Job(**job) for job in values["jobs"] or ()]
    if values["jobs"] is None:
        require_handlers(yes, "get no work from lines that do not name their handlers")
        handlers = [lane.name for lane in get_lanes() if lane.wants(update)]
        jobs = [Job(name, "pending", 0.0) for name in handlers]
    result = keep_as_is(update, jobs, handlers, times=values["times"], last_received_at=values["last_received_at"])
    return {"new": "kept", "repeat": "kept already", "spooled": "spooled"}[result.outcome]
