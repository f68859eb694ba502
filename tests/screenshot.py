"""A day of made-up calls, a browser to look at them with, and the README's picture of that: `make screenshot`."""

import random
import shutil
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from schemas.times import isoformat
from stores import refusals, updates
from stores.records import Job
from stores.sqlite import SQLite
from tests.conftest import PASSWORD, Receiver, keep_update, settle_jobs, update

CHROMIUM = shutil.which("chromium")
CREDENTIALS = {"username": "", "password": PASSWORD, "send": "always"}
CALLS = (9, 7, 5, 3, 2, 1, 1, 0, 0, 1, 2, 5, 12, 24, 31, 29, 26, 19, 27, 30, 28, 25, 18, 11)  # in each of 24 hours
LINES = (("+31850835037", "Front desk"), ("+31850835040", "Support"), ("+31201234567", "Amsterdam clinic"))
HANDLERS = ("log_event", "update_crm")
ERRORS = ("STT connection failed", "LLM timed out after 30 s", "SIP 486 Busy here")


def fill(path, active, now):
    """Keep a day of calls in a new file, done at once, after which `active` are on; where some are, something needs
    attention."""
    chance = random.Random(5)
    starts = [
        now - 3600 * (24 - hour) + chance.uniform(0, 3000) for hour, calls in enumerate(CALLS) for _ in range(calls)
    ]
    made_up_updates = [each for start in starts for each in made_up(chance, start, chance.lognormvariate(4.6, 0.6))]
    made_up_updates += [each for _ in range(active) for each in made_up(chance, now - chance.uniform(4, 600), None)]
    with closing(SQLite(str(path), clock=lambda: now)) as store:
        for each in made_up_updates[:-1]:
            updates.keep(store, each, (), HANDLERS)
        last = keep_update(store, made_up_updates[-1], ["update_crm"] if active else (), now)
        if active:
            error = "answered 404: no such contact"
            settle_jobs(store, (last, now, [Job("update_crm", "failed", None, 1, now, error, now)]))
            refusals.add(store, "wrong signature", 12, now - 1500)


def made_up(chance, start, seconds):
    """The updates of one call that lasts `seconds`, or is still on."""
    kind = chance.choices(("inbound_phone_call", "outbound_phone_call", "web_call"), (7, 2, 1))[0]
    number, name = chance.choice(LINES) if kind != "web_call" else (None, None)
    customer = f"+31612{chance.randrange(10**6):06}" if number else None
    changes = [("in-progress", start, {})]
    if seconds and chance.random() < 0.06:
        changes.append(("ended-with-error", start + seconds / 9, {"error": chance.choice(ERRORS)}))
    elif seconds:
        changes.append(("ended", start + seconds, {"end_reason": chance.choice(("user_hangup", "assistant_hangup"))}))
    call_id = f"{chance.getrandbits(64):016x}"
    for status, at, fields in changes:
        fields |= {"phone_number": {"number": number, "name": name}, "customer": {"number": customer}}
        one = update(status, call_id, at, timestamp=isoformat(datetime.fromtimestamp(at, UTC)), **fields)
        yield replace(one, call=replace(one.call, type=kind))


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{each}" for each in quiet)]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


def main(picture):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        fill(path / "calls.db", 5, time.time())
        command = ("gunicorn", "--bind", "127.0.0.1:PORT", "app:app")
        receiver = Receiver(*command, path=path, WEBHOOK_SECRET="a secret", CRM_WEBHOOK_URL="http://127.0.0.1:1")
        with chromium() as browser:
            viewport = {"width": 1280, "height": 960}
            page = browser.new_page(viewport=viewport, http_credentials=CREDENTIALS, locale="en-GB")
            page.goto(receiver.ready().url)
            page.screenshot(path=picture)
        receiver.stop()


if __name__ == "__main__":
    main(sys.argv[1])
