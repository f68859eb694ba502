"""`flask reconcile`: check long-running calls with the provider."""

import sys

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command
from logs import mask
from work import reconcile as provider


@click.command(cls=Command)
@with_appcontext
def reconcile() -> None:
    """Check calls that have been active for over an hour with the provider, and settle those that are over."""
    if not current_app.config["PROVIDER_API_KEY"]:
        raise click.UsageError("set PROVIDER_API_KEY to a key of the provider's API")
    results = []
    for call, found in provider.reconcile():
        results.append(found)
        click.echo(f"{mask(call.id)}: {found}")
    if not results:
        click.echo("no call has been active for over an hour")
    if any(found.startswith(provider.NOT_TOLD) for found in results):
        sys.exit(1)
