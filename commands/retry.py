"""`flask retry`: do now what is pending."""

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command
from stores import get_store, jobs
from work.lanes import get_lanes
from work.worker import catch_up


@click.command(cls=Command)
@click.option("--failed", is_flag=True, help="Also what has failed for good.")
@with_appcontext
def retry(failed: bool) -> None:
    """Do now what is pending, but for handlers that are off here."""
    app, store = current_app._get_current_object(), get_store()  # type: ignore[attr-defined]
    due = sum(jobs.retry_now(store, lane.name, failed=failed) for lane in get_lanes())
    for lane in get_lanes():
        catch_up(app, lane)
    backlogs = jobs.backlog(store)
    click.echo(f"{due} made due, {sum(backlog.pending for backlog in backlogs)} still pending")
    reasons = {lane.name: lane.reason or "its service answers" for lane in get_lanes()}
    for backlog in backlogs:
        reason = reasons.get(backlog.handler, "off here")
        click.echo(f"{backlog.handler}: {backlog.pending} pending, {backlog.failed} failed ({reason})")
