"""`flask reconcile`: check long-running calls with the provider."""

import sys

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command, require_handlers
from logs import mask
from work import reconcile as checks


@click.command(cls=Command)
@click.option("--yes", is_flag=True, help="Go on, whichever handlers are off here.")
@with_appcontext
def reconcile(yes: bool) -> None:
    """Check calls that have been active for over an hour with the provider, and end those that are over."""
    if not current_app.config["PROVIDER_API_KEY"]:
        raise click.UsageError("set PROVIDER_API_KEY to a key of the provider's API")
    require_handlers(yes, "get nothing of the calls that are ended")
    results = []
    for call, result in checks.reconcile():
        results.append(result)
        click.echo(f"{mask(call.id)}: {result}")
    if not results:
        click.echo("no call has been active for over an hour")
    if any(result.startswith(checks.NOT_TOLD) for result in results):
        sys.exit(1)
