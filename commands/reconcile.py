"""`flask reconcile`: ask the provider after calls that never ended."""

import sys

import click
from flask import current_app
from flask.cli import with_appcontext

import upkeep
from commands.base import Command
from logs import mask


@click.command(cls=Command)
@with_appcontext
def reconcile() -> None:
    """Ask the provider after calls that have been active for over an hour, and settle those that are over."""
    if not current_app.config["PROVIDER_API_KEY"]:
        raise click.UsageError("set PROVIDER_API_KEY to a key of the provider's API")
    results = []
    for call, found in upkeep.reconcile():
        results.append(found)
        click.echo(f"{mask(call.id)}: {found}")
    if not results:
        click.echo("no call has been active for over an hour")
    if any(found.startswith("not told") for found in results):
        sys.exit(1)
