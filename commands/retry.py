"""`flask retry`: do now what is pending."""

from concurrent.futures import ThreadPoolExecutor

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command
from stores import get_store, jobs
from work.lanes import get_lane, get_lanes
from work.worker import Worker


@click.command(cls=Command)
@click.option("--failed", is_flag=True, help="Also what has failed for good.")
@with_appcontext
def retry(failed: bool) -> None:
    """Do now what is pending, but for handlers that are off here."""
    app, store = current_app._get_current_object(), get_store()  # type: ignore[attr-defined]
    jobs.retry_now(store, [lane.name for lane in get_lanes()], failed=failed)
    due_by, workers = store.now(), [Worker(app, lane) for lane in get_lanes()]

    def catch_up(worker: Worker) -> None:
        with app.app_context():
            while worker.catch_up(due_by):
                worker.wait()

    with ThreadPoolExecutor(max(len(workers), 1)) as pool:
        list(pool.map(catch_up, workers))  # raises what they do
    done, left = sum(worker.done for worker in workers), sum(worker.left for worker in workers)
    click.echo(f"{done} done, {left} tried and not done")
    for backlog in jobs.backlog(store):
        lane = get_lane(backlog.handler)
        if lane is None and backlog.pending:
            click.echo(f"{backlog.handler}: off here, {backlog.pending} left")
        elif lane and lane.state == "away":
            click.echo(f"{lane.name}: its service is away ({lane.reason}), {backlog.pending} left")
