"""`flask simulate`: made-up calls, such as the provider sends."""

import json
import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any
from urllib.parse import urlsplit

import click
import requests
from flask.cli import with_appcontext

from commands.client import Command, first_secret, post, require_connection, webhook_url
from config import LOOPBACK
from schemas.document import STATUS_UPDATE
from schemas.statuses import ENDED, ENDED_WITH_ERROR, IN_PROGRESS
from schemas.times import isoformat


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
    if not yes and urlsplit(url).hostname not in LOOPBACK:
        click.confirm(f"Post {calls} made-up calls to {url}?", abort=True)
    require_connection(url)
    session, secret = requests.Session(), first_secret()

    def send(message: dict[str, Any]) -> tuple[str, float]:
        sent_at = time.monotonic()
        result = post(session, url, json.dumps({"message": message}).encode(), secret)
        return result, time.monotonic() - sent_at

    started = time.monotonic()
    script = sorted(made_up_calls(calls, rate, errors), key=itemgetter(0))
    with ThreadPoolExecutor(16) as pool, click.progressbar(script, label="Posting", file=sys.stderr) as bar:
        answers = []
        for offset, message in bar:
            time.sleep(max(0, started + offset - time.monotonic()))
            answers.append(pool.submit(send, message))
    results = [answer.result() for answer in answers]
    for result, count in Counter(result for result, _ in results).most_common():
        click.echo(f"{count} {result}")
    click.echo(f"slowest {1000 * max(seconds for _, seconds in results):.0f} ms")
    if any(result != "answered 200" for result, _ in results):
        sys.exit(1)


def made_up_calls(calls: int, rate: float, errors: float) -> Iterator[tuple[float, dict[str, Any]]]:
    """When, in seconds from now, to send which message: two a call, and one in ten of them twice.

    About a dozen calls are on at a time, whatever the rate.
    """
    now = datetime.now(UTC)
    for index in range(calls):
        kind = random.choices(("inbound_phone_call", "outbound_phone_call", "web_call"), (6, 3, 1))[0]
        number = f"+31612{random.randrange(10**6):06}"
        web = kind == "web_call"
        call_id = random.choice((f"{uuid.uuid4()}", f"call-_{'web' if web else number}_{uuid.uuid4().hex[:12]}"))
        last, details = ENDED, {"end_reason": random.choice(("user_hangup", "assistant_hangup", "max_duration"))}
        if random.random() < errors:
            error = random.choice(("STT connection failed", "LLM timed out after 30 s", "SIP 486 Busy here"))
            last, details = ENDED_WITH_ERROR, {"error": error}
        start = index / rate
        end = start + random.uniform(4, 24) / rate
        for offset, status, more in ((start, IN_PROGRESS, {}), (end, last, details)):
            message = {
                "type": STATUS_UPDATE,
                "timestamp": isoformat(now + timedelta(seconds=offset)),
                "call": {"id": call_id, "type": kind, "status": status},
                "phone_number": {"number": None if web else "+31850835037", "name": None if web else "Front desk"},
                "customer": {"number": None if web else number},
                **more,
            }
            yield offset, message
            if random.random() < 0.1:
                yield offset + 1 / rate, message
