"""Fills a database through the store's own verb, so that it is as settled updates leave it.

Only the waiting is left out: many updates are one transaction.
"""

import random
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import stores
from config import load_config
from schemas.status_update import Call, Customer, PhoneNumber, StatusUpdate
from stores import updates
from stores.records import Job

BATCH, DAYS = 2000, 29
LAST_DAY = 0.1  # the share of all calls: 50,000 of a million updates
LINES = [PhoneNumber(f"+3185083{5037 + index}", f"Clinic {index}") for index in range(12)]
TYPES = ("inbound_phone_call", "inbound_phone_call", "outbound_phone_call")
ERRORS = ("STT connection failed", "LLM timed out after 30 s", "SIP 486 Busy here", "SIP 503", "no speech heard")


def fill(environment: dict[str, str], first: int, count: int) -> None:
    """Keep the updates from `first` on, in the order in which they would have come."""
    db = stores.create(load_config(environment))
    db.check()
    for start in range(first, first + count, BATCH):
        with one_transaction(db):
            found = made_up(start, min(BATCH, first + count - start), first + count)
            for index, update in enumerate(found, start):
                db.now = update.received_at.timestamp
                pending, failed = index % 500 == 2, index % 5000 == 1
                updates.keep(
                    db,
                    update,
                    [Job("update_crm", "pending", 0.0)] * pending + [Job("update_crm", "failed", None)] * failed,
                )
        print(f"\r{start + BATCH:9} kept", end="", file=sys.stderr, flush=True)
    db.close()


def made_up(first: int, count: int, of: int) -> Iterator[StatusUpdate]:
    """One call in ten ends with an error, on the last day one in eight; one in fifty is a web call."""
    for index in range(first, first + count, 2):
        started = time.time() - 86400 * days_ago(index / of) - 600
        id, caller = str(uuid.uuid4()), Customer(number(index))
        line, kind = random.choice(LINES), random.choice(TYPES)
        if index % 100 == 4:
            line, caller, kind = PhoneNumber(), Customer(), "web_call"
        fails = random.random() < (0.1 if index / of < 1 - LAST_DAY else 0.125)
        last = ("ended-with-error", random.choice(ERRORS)) if fails else ("ended", None)
        for status, error, at in (("in-progress", None, started), (*last, started + random.uniform(10, 500))):
            moment = datetime.fromtimestamp(at, UTC)
            yield StatusUpdate(Call(id, status, kind), moment, moment, line, caller, error)


def number(index: int) -> str:
    """The caller's, of the call whose updates begin at `index`."""
    return f"+316{index % 10**8:08}"


def days_ago(part: float) -> float:
    """When the call was that comes after this part of all."""
    before = 1 - LAST_DAY
    return (1 - part) / LAST_DAY if part > before else 1 + (DAYS - 1) * (1 - part / before)


@contextmanager
def one_transaction(db: stores.Database) -> Iterator[None]:
    """What `record` answers within it means nothing."""
    if db.name == "sqlite":
        with db._locked(), db._begun() as connection:
            db._write = lambda run: run(connection)
            yield
            del db._write
        return
    from stores.postgres_connections import _native

    with db._connection() as connection, connection.transaction():
        connection.patience = 600
        connection.execute("SET LOCAL statement_timeout = 0")
        with connection.pipeline():
            db.execute = lambda sql, values: connection.execute(_native(sql), values, prepare=True) and []
            yield
            del db.execute
