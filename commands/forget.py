"""`flask forget`: remove one person."""

import re
from collections import Counter

import click
from flask.cli import with_appcontext

from commands.client import Command
from stores import get_store, retention, spool


@click.command(cls=Command)
@click.argument("number")
@with_appcontext
def forget(number: str) -> None:
    """Remove the calls of the customer with NUMBER (E.164, such as +31612345678), with all that is kept of them."""
    if not re.fullmatch(r"\+[0-9]{6,15}", number):
        raise click.BadParameter("give the number as the provider does: + and 6 to 15 digits")
    store = get_store()
    removed = Counter()
    if store.spool and spool.waiting(store):
        with spool.locked(store.spool):  # first, so that nothing moves from there into the store afterwards
            removed.update(retention.forget(store.spool, number))
    removed.update(retention.forget(store, number))
    click.echo(", ".join(f"{count} {name}" for name, count in removed.items()) + " removed")
