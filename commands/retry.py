"""`flask retry`: do now what is pending."""

import sys
import threading

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command
from stores import get_store, jobs
from work.lanes import get_lanes
from work.worker import Worker


@click.command(cls=Command)
@click.option("--failed", is_flag=True, help="Also what has failed for good.")
@with_appcontext
def retry(failed: bool) -> None:
    """Do now what is pending, but for handlers that are off here."""
    app, store, lanes = current_app._get_current_object(), get_store(), get_lanes()  # type: ignore[attr-defined]
    due = jobs.retry_now(store, [lane.name for lane in lanes], failed=failed)
    due_by, workers, errors = store.now(), [Worker(app, lane) for lane in lanes], []

    def work(worker: Worker) -> None:
        try:
            with app.app_context():
                while worker.catch_up(due_by):
                    worker.wait()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in workers]
    with click.progressbar(length=due, label="Retrying", file=sys.stderr, hidden=not sys.stderr.isatty()) as bar:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.1)
            bar.update(sum(worker.done + worker.left for worker in workers) - bar.pos)
    if errors:
        raise errors[0]
    done, left = (sum(getattr(worker, name) for worker in workers) for name in ("done", "left"))
    click.echo(f"{done} done, {left} tried and not done")
    _tell_what_is_left(
        {lane.name: lane.reason for lane in lanes if lane.state == "away"}, [lane.name for lane in lanes]
    )


def _tell_what_is_left(away: dict[str, str], active: list[str]) -> None:
    """Say what nobody has tried: work of services that stay away, and of handlers that are off here."""
    for backlog in jobs.backlog(get_store()):
        if backlog.handler in away:
            click.echo(f"{backlog.handler}: its service is away ({away[backlog.handler]}), {backlog.pending} left")
        elif backlog.handler not in active and backlog.pending:
            click.echo(f"{backlog.handler}: off here, {backlog.pending} left")
