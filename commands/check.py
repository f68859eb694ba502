"""`flask check`: whether the receiver is set up."""

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.base import Command
from config import on_and_off, warnings
from stores import get_store


@click.command(cls=Command)
@with_appcontext
def check() -> None:
    """Show which settings are on and off, whether the store can keep an update, and what is missing."""
    config, store = current_app.config, get_store()
    on, off = on_and_off(config)
    click.echo(f"on:    {', '.join(on) or 'nothing'}")
    click.echo(f"off:   {', '.join(off) or 'nothing'}")
    store.check()
    click.echo(f"store: {store.name}, {store.durability}")
    for warning in warnings(config):
        click.echo(f"note:  {warning}")
