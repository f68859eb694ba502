"""`flask check`: whether the receiver is set up, here or where it is deployed."""

import json
import sys
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import click
import requests
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command, connection_error, first_secret, post, require_connection, webhook_url
from config import LOOPBACK, warnings
from handlers import active_calls
from intake.refusals import CHECK_AGENT
from schemas.document import STATUS_UPDATE
from schemas.settings import on_and_off
from schemas.statuses import ENDED_WITH_ERROR, IN_PROGRESS
from schemas.times import isoformat
from stores import get_store, spool


@click.command(cls=Command)
@click.option("--url", help="Ask the receiver there instead, with this WEBHOOK_SECRET. It keeps nothing of it.")
@click.option("--send", is_flag=True, help="With --url: also send a call named TEST CALL through every handler.")
@with_appcontext
def check(url: str | None, send: bool) -> None:
    """Show what is on and off, what is missing, and whether services and store answer; or check a deployment."""
    if url:
        check_deployment(webhook_url(url), first_secret(), send)
        return
    if send:
        raise click.UsageError("--send goes with --url")
    show_settings(current_app.config)
    show_services(current_app.config)
    show_store()


def show_settings(config: Mapping[str, Any]) -> None:
    on, off = on_and_off(config)
    click.echo(f"on:    {', '.join(on) or 'nothing'}")
    click.echo(f"off:   {', '.join(off) or 'nothing'}")
    for warning in warnings(config):
        click.echo(f"note:  {warning}")


def show_services(config: Mapping[str, Any]) -> None:
    """Whether each service that is set can be reached. Redis is pinged."""
    if config["REDIS_URL"]:
        click.echo(f"redis: {ping(config)}")
    for name in ("crm", "slack"):
        if url := config[f"{name.upper()}_WEBHOOK_URL"]:
            click.echo(f"{name + ':':6} {connection_error(url) or 'reachable'}")


def ping(config: Mapping[str, Any]) -> str:
    from redis.exceptions import RedisError

    try:
        with active_calls.connect(config) as redis:
            redis.ping()
    except RedisError as error:
        return f"{error} ({active_calls.CHECK})"
    return "reachable"


def show_store() -> None:
    """What the store is and what to know of it. Raises StoreError where it cannot keep an update."""
    store = get_store()
    if spooled := spool.waiting(store):
        click.echo(f"note:  {spooled} updates wait in the spool until the database takes them.")
    if store.spool and store.spool.failure:
        click.echo(f"note:  The spool cannot be used: {store.spool.failure}")
    store.check()
    click.echo(f"store: {store.name}, {store.durability}")


def check_deployment(url: str, secret: str | None, send: bool) -> None:
    """Send what the receiver at `url` has to refuse or pass over; exit with 1 where an answer differs."""
    if not secret and urlsplit(url).hostname not in LOOPBACK:
        raise click.UsageError("set WEBHOOK_SECRET to the deployment's: what it refuses cannot be told without")
    require_connection(url)
    session, wrong = requests.Session(), 0
    session.headers["User-Agent"] = CHECK_AGENT
    for what, expected, body, signed_by, age in deliveries(secret):
        answer = post(session, url, body, signed_by, age)
        differs = answer != f"answered {expected}"
        wrong += differs
        click.echo(f"{what:36} expected {expected}, {answer}{'   <-- differs' if differs else ''}")
    if send:
        wrong += send_test_call(session, url, secret)
    if wrong:
        click.echo("Is WEBHOOK_SECRET here the one that is set there, and is this the receiver's URL?", err=True)
        sys.exit(1)


def deliveries(secret: str | None) -> Iterator[tuple[str, int, bytes, str | None, int]]:
    """What is posted, the answer expected, the body, and the secret that signs it so many seconds ago. None of it can
    be kept, or count as lost."""
    empty = b'{"message": {}}'
    if secret:
        yield "unsigned", 401, empty, None, 0
        yield "signed with another secret", 401, empty, uuid.uuid4().hex, 0
        yield "signed a day ago", 401, empty, secret, 86400
    yield "broken JSON", 400, b'{"message": ', secret, 0
    yield "no status update", 422, empty, secret, 0
    for kind in ("assistant-request", "tool-calls", "end-of-call-report"):
        yield f"a message of type {kind}", 200, json.dumps({"message": {"type": kind}}).encode(), secret, 0


def send_test_call(session: requests.Session, url: str, secret: str | None) -> int:
    """Send one call through every handler. Returns how many of its two updates were not answered 200."""
    call_id, wrong = f"test-call-{uuid.uuid4()}", 0
    for status, error in ((IN_PROGRESS, None), (ENDED_WITH_ERROR, "TEST CALL: nothing is wrong")):
        message = {
            "type": STATUS_UPDATE,
            "timestamp": isoformat(datetime.now(UTC)),
            "call": {"id": call_id, "type": "inbound_phone_call", "status": status},
            "phone_number": {"number": "+12025550100", "name": "TEST CALL"},
            "customer": {"number": "+12025550101"},
            "error": error,
        }
        result = post(session, url, json.dumps({"message": message}).encode(), secret)
        wrong += result != "answered 200"
        click.echo(f"TEST CALL {status}: {result}")
    click.echo(f"Look for {call_id} in the log, in the CRM, and for its error in Slack.")
    return wrong
