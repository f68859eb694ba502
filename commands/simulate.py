"""`flask simulate`: made-up calls, such as the provider sends."""

import random
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import click
from flask import current_app
from flask.cli import with_appcontext

from commands.client import Command, post, report, require_connection, update_body, webhook_url
from config import LOOPBACK
from schemas.statuses import ENDED, ENDED_WITH_ERROR, IN_PROGRESS


@click.command(cls=Command)
@click.option("--url", type=webhook_url, default="http://127.0.0.1:8000", show_default=True, help="The receiver.")
@click.option("--calls", type=click.IntRange(1), default=20, show_default=True, help="How many calls.")
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=4, show_default=True, help="Calls a second.")
@click.option("--errors", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share that ends in error.")
@click.option("--yes", is_flag=True, help="Do not ask, wherever the URL leads.")
@with_appcontext
def simulate(url: str, calls: int, rate: float, errors: float, yes: bool) -> None:
    """Post made-up calls to a receiver, signed with WEBHOOK_SECRET, and count its answers."""
    if not yes and urlsplit(url).hostname not in LOOPBACK:
        click.confirm(f"Post {calls} made-up calls to {url}?", abort=True)
    require_connection(url)
    script, answers = sorted(made_up_calls(calls, rate, errors)), []
    started = time.monotonic()
    with ThreadPoolExecutor(10) as pool, click.progressbar(script, label="Posting", file=sys.stderr) as bar:
        for offset, body in bar:
            time.sleep(max(0, started + offset - time.monotonic()))
            answers.append(pool.submit(post, url, body, current_app.config["WEBHOOK_SECRET"]))
    report(Counter(answer.result() for answer in answers), ["answered 200"])


def made_up_calls(calls: int, rate: float, errors: float) -> Iterator[tuple[float, bytes]]:
    """When, in seconds from now, to post which body: two a call. About a dozen calls are on at a time, whatever the
    rate."""
    now = datetime.now(UTC)
    for index in range(calls):
        call_id, customer = str(uuid.uuid4()), f"+31612{random.randrange(10**6):06}"
        start = index / rate
        end = start + random.uniform(4, 24) / rate
        status, details = ENDED, {"end_reason": random.choice(("user_hangup", "assistant_hangup", "max_duration"))}
        if random.random() < errors:
            status, details = ENDED_WITH_ERROR, {"error": random.choice(("STT connection failed", "SIP 486 Busy here"))}
        yield start, update_body(call_id, IN_PROGRESS, now + timedelta(seconds=start), customer)
        yield end, update_body(call_id, status, now + timedelta(seconds=end), customer, **details)
