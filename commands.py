"""The `flask` commands."""

import json
import logging
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import click
import requests
from flask import Flask, current_app
from flask.cli import with_appcontext

from config import WEBHOOK_PATH, on_and_off, warnings
from dispatch import clock, retry_one
from handlers import HANDLERS
from schemas.status_update import isoformat
from signature import sign
from stores import Kept, StoreError, get_store


class Command(click.Command):
    """A command that logs to stderr, as stdout is for its result, and says in one line that the store fails."""

    def invoke(self, ctx: click.Context) -> Any:
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.setStream(sys.stderr)
        try:
            return super().invoke(ctx)
        except StoreError as error:
            raise click.ClickException(str(error)) from None


def register(app: Flask) -> None:
    for command in (check, simulate, export, retry):
        app.cli.add_command(command)


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


@click.command(cls=Command)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The receiver.")
@click.option("--calls", type=click.IntRange(1), default=20, show_default=True, help="How many calls.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=4, show_default=True, help="Calls a second.")
@click.option("--errors", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share that ends in error.")
@click.option("--yes", is_flag=True, help="Do not ask, wherever the URL leads.")
@with_appcontext
def simulate(url: str, calls: int, rate: float, errors: float, yes: bool) -> None:
    """Post made-up calls to a receiver, signed with WEBHOOK_SECRET, and count its answers."""
    url = webhook_url(url)
    if not yes and urlsplit(url).hostname not in ("127.0.0.1", "localhost", "::1"):
        click.confirm(f"Post {calls} made-up calls to {url}?", abort=True)
    session = requests.Session()
    session.trust_env = False
    secret = next(iter(current_app.config["WEBHOOK_SECRET"]), None)
    started = time.monotonic()
    with ThreadPoolExecutor(16) as pool:
        answers = []
        script = sorted(made_up_calls(calls, rate, errors), key=lambda each: each[0])
        with click.progressbar(script, label="Posting", file=sys.stderr) as bar:
            for offset, message in bar:
                time.sleep(max(0, started + offset - time.monotonic()))
                answers.append(pool.submit(send, session, url, message, secret))
    results = [answer.result() for answer in as_completed(answers)]
    for answer, count in Counter(answer for answer, _ in results).most_common():
        click.echo(f"{count} answered {answer}")
    click.echo(f"slowest {1000 * max(seconds for _, seconds in results):.0f} ms")
    if any(answer != "200" for answer, _ in results):
        sys.exit(1)


def webhook_url(url: str) -> str:
    """`url` as given, or its webhook where only a server is named."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise click.BadParameter(f"{url} is not an http:// or https:// URL")
    return url if parts.path.strip("/") else f"{url.rstrip('/')}{WEBHOOK_PATH}"


def made_up_calls(calls: int, rate: float, errors: float) -> Iterator[tuple[float, dict[str, Any]]]:
    """When, in seconds from now, to send which message: two a call, and one in ten of them twice.

    About a dozen calls are on at a time, whatever the rate.
    """
    for index in range(calls):
        kind = random.choices(("inbound_phone_call", "outbound_phone_call", "web_call"), (6, 3, 1))[0]
        number = f"+31612{random.randrange(10**6):06}"
        web = kind == "web_call"
        call_id = random.choice((f"{uuid.uuid4()}", f"call-_{'web' if web else number}_{uuid.uuid4().hex[:12]}"))
        last = {"status": "ended", "end_reason": random.choice(("user_hangup", "assistant_hangup", "max_duration"))}
        if random.random() < errors:
            error = random.choice(("STT connection failed", "LLM timed out after 30 s", "SIP 486 Busy here"))
            last = {"status": "ended-with-error", "error": error}
        start = index / rate
        for offset, change in ((start, {"status": "in-progress"}), (start + random.uniform(4, 24) / rate, last)):
            message = {
                "type": "status-update",
                "call": {"id": call_id, "type": kind, "status": change["status"]},
                "phone_number": {"number": None if web else "+31850835037", "name": None if web else "Front desk"},
                "customer": {"number": None if web else number},
                **{name: value for name, value in change.items() if name != "status"},
            }
            yield offset, message
            if random.random() < 0.1:
                yield offset + 1 / rate, message


def send(session: requests.Session, url: str, message: dict[str, Any], secret: str | None) -> tuple[str, float]:
    """Post one message, stamped now, signed if there is a secret.

    Returns the answer's status, or what went wrong, and the seconds it took.
    """
    now = time.time()
    message = message | {"timestamp": isoformat(datetime.fromtimestamp(now, UTC))}
    body = json.dumps({"message": message}).encode()
    headers = {"Content-Type": "application/json", "X-Webhook-Event": message["type"]}
    if secret:
        headers["X-Webhook-Timestamp"] = str(int(now))
        headers["X-Webhook-Signature"] = sign(secret, int(now), body)
    started = time.monotonic()
    try:
        answer = str(session.post(url, data=body, headers=headers, timeout=30, allow_redirects=False).status_code)
    except requests.RequestException as error:
        answer = type(error).__name__
    return answer, time.monotonic() - started


def since(_context: click.Context, _parameter: click.Parameter, value: str) -> float:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("give a time such as 2025-12-13 or 2025-12-13T12:00:00Z") from None
    return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()


@click.command(cls=Command)
@click.option("--since", callback=since, default="1970-01-01", help="Only what was kept at this time (UTC) or later.")
@with_appcontext
def export(since: float) -> None:
    """Print every kept update as a line of JSON, in the order they were kept."""
    for kept in get_store().updates(since):
        click.echo(json.dumps(exported(kept)))


def exported(kept: Kept) -> dict[str, Any]:
    """One line of the export; `flask import` takes it."""
    message = json.loads(kept.message)["message"]
    return {
        "call_id": kept.call_id,
        "status": kept.status,
        "timestamp": message["timestamp"],
        "received_at": isoformat(datetime.fromtimestamp(kept.received_at, UTC)),
        "kept_at": isoformat(datetime.fromtimestamp(kept.kept_at, UTC)),
        "pending": [row.handler for row in kept.rows if row.due is not None],
        "failed": [row.handler for row in kept.rows if row.due is None],
        "message": message,
    }


@click.command(cls=Command)
@click.option("--failed", is_flag=True, help="Also what has failed for good.")
@with_appcontext
def retry(failed: bool) -> None:
    """Do now what is pending."""
    now = clock()
    get_store().hurry(now, failed=failed)
    results = Counter(done for handler in HANDLERS for done in iter(lambda h=handler: retry_one(h, now), None))
    click.echo(f"{results[True]} done, {results[False]} tried and not done")
