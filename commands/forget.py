"""`flask forget`: remove one person."""

from contextlib import nullcontext

import click
from flask.cli import with_appcontext

from commands.client import Command
from stores import get_store, numbers, retention, spool


@click.command(cls=Command)
@click.argument("who")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@with_appcontext
def forget(who: str, yes: bool) -> None:
    """Remove a person's calls with all that is kept of them, after showing how many they are.

    WHO is the customer's number in any form, all of it or its last nine digits or more; a SIP user, or what is sent in
    place of a number, such as anonymous; or the id of a call.
    """
    store = get_store()
    # The spool comes first, as what waits there may move into the store meanwhile.
    databases = [store.spool, store] if store.spool and spool.waiting(store) else [store]
    ids = set[str]().union(*(retention.calls_of(database, who) for database in databases))
    if not who.strip() or not ids:
        click.echo(f"Nothing is kept of {who}. Give all of a number, or its last {numbers.SHARED} digits or more.")
        return
    if not yes:
        click.confirm(f"Calls of {who}: {len(ids):,}. Remove all that is kept of them?", abort=True)
    with spool.locked(store.spool) if store.spool in databases else nullcontext():
        updates = sum(retention.remove(database, ids) for database in databases)
    click.echo(f"Removed: {len(ids):,} calls, {updates:,} updates")
