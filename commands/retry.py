"""`flask retry`: do now what is pending."""

from collections import Counter

import click
from flask.cli import with_appcontext

from commands.base import Command
from config import clock
from dispatch import retry_one
from handlers import HANDLERS
from stores import get_store


@click.command(cls=Command)
@click.option("--failed", is_flag=True, help="Also what has failed for good.")
@with_appcontext
def retry(failed: bool) -> None:
    """Do now what is pending."""
    now = clock()
    get_store().hurry(now, failed=failed)
    results = Counter(done for handler in HANDLERS for done in iter(lambda h=handler: retry_one(h, now), None))
    click.echo(f"{results[True]} done, {results[False]} tried and not done")
