"""`flask export` and `flask import`: what is kept, as lines of JSON."""

import json
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any, BinaryIO

import click
from flask.cli import with_appcontext
from marshmallow import ValidationError

from commands.client import Command, first_secret, new_session, post, webhook_url
from handlers import HANDLERS
from schemas.status_update import StatusUpdate, field_errors, load_update
from schemas.strict_json import parse_json
from schemas.times import parse_time
from stores import get_store, spool
from stores.export import every_update, exported


def since(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    try:
        return parse_time(value).timestamp()
    except (ValueError, OverflowError):
        raise click.BadParameter("give a time such as 2025-12-13 or 2025-12-13T12:00:00Z") from None


@click.command(cls=Command)
@click.option("--since", callback=since, default="1970-01-01", help="Only what was kept at this time (UTC) or later.")
@with_appcontext
def export(since: float) -> None:
    """Print every kept update as a line of JSON, those that are spooled first."""
    store = get_store()
    with progress(every_update(store, since), "Exporting") as found:
        for stored in found:
            click.echo(json.dumps(exported(stored)))


def progress(things: Iterable[Any], label: str) -> AbstractContextManager[Iterable[Any]]:
    """`things`, counted on a terminal that shows nothing else."""
    hidden = sys.stdout.isatty() or not sys.stderr.isatty()
    return click.progressbar(things, label=label, file=sys.stderr, show_pos=True, hidden=hidden)


@click.command("import", cls=Command)
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--url", help="Post the lines to this receiver instead, signed with WEBHOOK_SECRET.")
@with_appcontext
def import_(file: BinaryIO, url: str | None) -> None:
    """Keep what FILE (or stdin) has: lines of an export, or of a log with messages that were refused or not kept.

    Lines without a message are passed over. What an export says is pending or failed is so again; a message from a log
    is pending for every handler. Importing twice changes nothing.
    """
    session, secret, target = new_session(), first_secret(), url and webhook_url(url)

    def take(line: bytes) -> str:
        """What came of one line. Raises ValidationError."""
        try:
            document = parse_json(line[max(line.find(b"{"), 0) :])
            message = document["message"]
        except (ValueError, TypeError, KeyError):
            return "passed over"
        update = load_update({"message": message}, received_at(document))
        return post(session, target, message, secret)[0] if target else keep(update, document)

    results = Counter()
    with progress(file, "Importing") as lines:
        for number, line in enumerate(lines, 1):
            try:
                results[take(line)] += 1
            except ValidationError as error:
                results["wrong"] += 1
                click.echo(f"line {number}: {json.dumps(field_errors(error))}", err=True)
    for result, count in results.items():
        click.echo(f"{count} {result}")
    if not results.keys() <= {"kept", "kept already", "spooled", "passed over", "answered 200"}:
        sys.exit(1)


def received_at(line: dict[str, Any]) -> datetime:
    """When an exported or logged line's update was received; now, where the line does not say."""
    try:
        return parse_time(line.get("received_at") or line["time"])
    except (KeyError, ValueError, TypeError, OverflowError):
        return datetime.fromtimestamp(get_store().now(), UTC)


def keep(update: StatusUpdate, line: dict[str, Any]) -> str:
    """Keep the update of an exported or logged line. Returns what came of it."""
    pending = line.get("pending", [handler.__name__ for handler in HANDLERS])
    recorded = spool.record(get_store(), update, pending, None, line.get("failed", []))
    return {"new": "kept", "repeat": "kept already"}.get(recorded.outcome, recorded.outcome)
