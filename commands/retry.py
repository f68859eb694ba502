"""`flask retry`: do now what is pending."""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command
from handlers import HANDLERS
from stores import get_store, jobs
from work.dispatch import Handler
from work.retries import catch_up


@click.command(cls=Command)
@click.option("--failed", is_flag=True, help="Also what has failed for good.")
@with_appcontext
def retry(failed: bool) -> None:
    """Do now what is pending."""
    app, store = current_app._get_current_object(), get_store()
    results, lock = Counter(), Lock()
    due = jobs.retry_now(store, failed=failed)
    due_by = store.now()
    with click.progressbar(length=due, label="Retrying", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:

        def work(handler: Handler) -> None:
            for done in catch_up(app, handler, due_by):
                with lock:
                    results[done] += 1
                    bar.update(1)

        with ThreadPoolExecutor(len(HANDLERS)) as pool:
            list(pool.map(work, HANDLERS))  # raises what a thread has raised
    click.echo(f"{results[True]} done, {results[False]} tried and not done")
