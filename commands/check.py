"""`flask check`: whether the receiver is set up, here or where it is deployed."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command, connection_error, post, require_connection, update_body, webhook_url
from config import warnings
from handlers import active_calls
from handlers.errors import Unavailable
from schemas.settings import on_and_off
from schemas.statuses import ENDED_WITH_ERROR, IN_PROGRESS
from stores import get_store, spool


@click.command(cls=Command)
@click.option("--url", type=webhook_url, help="Check the receiver there, with this WEBHOOK_SECRET.")
@click.option("--send", is_flag=True, help="With --url: also send a call named TEST CALL through every handler.")
@with_appcontext
def check(url: str | None, send: bool) -> None:
    """Show what is on and off, what is missing, and whether services and store answer; or check a deployment."""
    if url:
        check_deployment(url, current_app.config["WEBHOOK_SECRET"], send)
        return
    if send:
        raise click.UsageError("--send goes with --url")
    for state, names in on_and_off(current_app.config).items():
        click.echo(f"{state + ':':6} {', '.join(names) or 'nothing'}")
    for warning in warnings(current_app.config):
        click.echo(f"note:  {warning}")
    show_services()
    store = get_store()
    if spooled := spool.waiting(store):
        click.echo(f"note:  {spooled} updates wait in the spool until the database takes them.")
    store.check()
    click.echo(f"store: {store.name}, {store.durability}")


def show_services() -> None:
    """Whether Redis answers, and the hosts of the CRM and of Slack take a connection, of those that are set."""
    if redis := current_app.extensions.get("redis"):
        try:
            active_calls.ask(redis.ping)
            click.echo("redis: reachable")
        except Unavailable as error:
            click.echo(f"redis: {error}")
    for name in ("crm", "slack"):
        if url := current_app.config[f"{name.upper()}_WEBHOOK_URL"]:
            click.echo(f"{name + ':':6} {connection_error(url) or 'reachable'}")


def check_deployment(url: str, secrets: Sequence[str], send: bool) -> None:
    """Send what the receiver at `url` has to refuse, whatever it is set to; exit with 1 where an answer differs."""
    require_connection(url)
    empty = b'{"message": {}}'
    answers = {"no status update": (422, post(url, empty, secrets))}
    if secrets:
        answers["unsigned"] = 401, post(url, empty, ())
        answers["signed with another secret"] = 401, post(url, empty, (uuid.uuid4().hex,))
    if send:
        call_id, line = f"test-call-{uuid.uuid4()}", {"number": "+12025550100", "name": "TEST CALL"}
        for status, error in ((IN_PROGRESS, None), (ENDED_WITH_ERROR, "TEST CALL: nothing is wrong")):
            body = update_body(call_id, status, datetime.now(UTC), "+12025550101", phone_number=line, error=error)
            answers[f"{call_id} {status}"] = 200, post(url, body, secrets)
    for what, (expected, answer) in answers.items():
        click.echo(f"{what:36} expected {expected}, {answer}")
    if any(answer != f"answered {expected}" for expected, answer in answers.values()):
        raise click.ClickException("is WEBHOOK_SECRET here the one that is set there, and is this the receiver's URL?")
