"""`flask forget`: remove one person."""

import re
from collections import Counter
from contextlib import nullcontext

import click
from flask.cli import with_appcontext

from commands.client import Command
from logs import mask
from stores import get_store, numbers, retention, spool

LISTED = 20  # ids


@click.command(cls=Command)
@click.argument("who")
@click.option("--yes", is_flag=True, help="Remove without asking.")
@with_appcontext
def forget(who: str, yes: bool) -> None:
    """Remove a person's calls with all that is kept of them, after showing how much that is.

    WHO is the customer's number in any form, all of it or its last nine digits or more; a SIP user, or what is sent in
    place of a number, such as anonymous; or the id of a call.
    """
    if not re.search(r"\w", who):
        raise click.BadParameter("give a number, a SIP user or the id of a call")
    store = get_store()
    databases = [store]
    if store.spool and spool.waiting(store):
        databases.insert(0, store.spool)  # first, as what waits there may move into the store meanwhile
    ids = set[str]().union(*(retention.calls_of(database, who) for database in databases))
    if not ids:
        say_that_nothing_is_kept(who)
    elif yes or is_confirmed(ids, sum((retention.count(database, ids) for database in databases), Counter[str]())):
        with spool.locked(store.spool) if store.spool and len(databases) > 1 else nullcontext():
            removed = sum((retention.remove(database, ids) for database in databases), Counter[str]())
        click.echo(f"{described(removed)} removed")


def say_that_nothing_is_kept(who: str) -> None:
    digits = numbers.digits(who) if numbers.is_number(who) else ""
    if digits and len(digits) < numbers.SHARED:
        raise click.BadParameter(f"no number is {digits}: give all of it, or its last {numbers.SHARED} digits or more")
    click.echo("Nothing of that person is kept.")


def is_confirmed(call_ids: set[str], counts: Counter[str]) -> bool:
    click.echo(f"{described(counts)}:")
    for call_id in sorted(call_ids)[:LISTED]:
        click.echo(f"  {mask(call_id)}")
    if len(call_ids) > LISTED:
        click.echo(f"  and {len(call_ids) - LISTED:,} more")
    return click.confirm("Remove all that is kept of them?", abort=True)


def described(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]:,} {name[: -1 if counts[name] == 1 else None]}" for name in retention.TABLES)
