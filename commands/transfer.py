"""`flask export` and `flask import`: what is kept, as lines of JSON."""

import json
import sys
from collections import Counter
from datetime import UTC, datetime
from typing import Any, BinaryIO

import click
import requests
from flask.cli import with_appcontext
from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate

from commands.client import Command, confirm_off, first_secret, post, webhook_url
from schemas.document import field_errors
from schemas.status_update import load_update
from schemas.strict_json import parse_json
from schemas.times import parse_time
from stores import get_store, restore
from stores.export import every_update, exported
from stores.records import Job
from work.lanes import get_lanes


def since(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    try:
        return parse_time(value).timestamp()
    except ValueError:
        raise click.BadParameter("give a time such as 2025-12-13 or 2025-12-13T12:00:00Z") from None


@click.command(cls=Command)
@click.option("--since", callback=since, default="1970-01-01", help="Only what was kept at this time (UTC) or later.")
@with_appcontext
def export(since: float) -> None:
    """Print every kept update as a line of JSON, those that are spooled first."""
    updates, hidden = every_update(get_store(), since), sys.stdout.isatty()
    with click.progressbar(updates, label="Exporting", file=sys.stderr, show_pos=True, hidden=hidden) as bar:
        for update in bar:
            click.echo(json.dumps(exported(update)))


class _JobSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    handler = fields.String(required=True)
    state = fields.String(required=True, validate=validate.OneOf(("pending", "failed", "done")))
    attempts = fields.Integer(load_default=0)
    error = fields.String(load_default=None)
    due_at = fields.AwareDateTime(load_default=None)
    first_tried_at = fields.AwareDateTime(load_default=None)
    done_at = fields.AwareDateTime(load_default=None)

    @post_load
    def make(self, values: dict[str, Any], **_: Any) -> Job:
        times = {name: value and value.timestamp() for name, value in values.items() if name.endswith("_at")}
        return Job(**values | times)


class _LineSchema(Schema):
    """What a line of an export, or of a log, says beside the message. Lines of older exports name only the handlers
    whose work is pending or has failed."""

    class Meta:
        unknown = EXCLUDE

    time = fields.AwareDateTime(load_default=None)
    received_at = fields.AwareDateTime(load_default=None)
    last_received_at = fields.AwareDateTime(load_default=None)
    times = fields.Integer(load_default=1)
    handlers = fields.List(fields.String(), load_default=None)
    pending = fields.List(fields.String(), load_default=None)
    failed = fields.List(fields.String(), load_default=[])
    jobs = fields.List(fields.Nested(_JobSchema), load_default=None)


_LINE = _LineSchema()


@click.command("import", cls=Command)
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--url", help="Post the lines to this receiver instead, signed with WEBHOOK_SECRET.")
@click.option("--yes", is_flag=True, help="Do not ask, whichever handlers are off here.")
@with_appcontext
def import_(file: BinaryIO, url: str | None, yes: bool) -> None:
    """Keep what FILE (or stdin) has: lines of an export, or of a log with messages that were refused or not kept.

    Lines without a message are passed over. What an export says is pending, failed or done is so again; a message from
    a log is pending for every handler that is on here and wants it. Importing twice changes nothing.
    """
    session, secret, target = requests.Session(), first_secret(), url and webhook_url(url)
    results = Counter[str]()
    with click.progressbar(file, label="Importing", file=sys.stderr, show_pos=True) as lines:
        for number, line in enumerate(lines, 1):
            try:
                document = parse_json(line[max(line.find(b"{"), 0) :])
                message = document["message"]
            except ValueError as error:
                results["wrong" if b"{" in line else "passed over"] += 1
                if b"{" in line:
                    click.echo(f"line {number}: {error}", err=True)
                continue
            except (TypeError, KeyError):
                results["passed over"] += 1
                continue
            try:
                if target:
                    results[post(session, target, json.dumps({"message": message}).encode(), secret)] += 1
                else:
                    results[_keep(document, yes)] += 1
            except ValidationError as error:
                results["wrong"] += 1
                click.echo(f"line {number}: {json.dumps(field_errors(error))}", err=True)
    for result, count in results.items():
        click.echo(f"{count} {result}")
    if not results.keys() <= {"kept", "kept already", "spooled", "passed over", "answered 200"}:
        sys.exit(1)


def _keep(document: dict[str, Any], yes: bool) -> str:
    """Keep the update of an exported or logged line. Returns what came of it. Raises ValidationError."""
    line, now = _LINE.load(document), datetime.fromtimestamp(get_store().now(), UTC)
    update = load_update(document, line["received_at"] or line["time"] or now)
    handlers, pending, jobs = line["handlers"], line["pending"], line["jobs"]
    if jobs is None and pending is None:
        confirm_off(yes, "get no work from lines that do not name their handlers")
        handlers = pending = [lane.name for lane in get_lanes() if lane.wants(update)]
    if jobs is None:
        jobs = [Job(name, "failed", None) for name in line["failed"]] + [Job(name, "pending", 0.0) for name in pending]
    last = line["last_received_at"]
    kept = restore(update, jobs, handlers, times=line["times"], last_received_at=last and last.timestamp())
    return {"new": "kept", "repeat": "kept already"}.get(kept.outcome, kept.outcome)
