"""Fills a store through its own verbs, record and track, so that the state is the one that settled updates leave.

Only the waiting is left out: one transaction for many updates (SQLite), many scripts in one round trip (Valkey).
"""

import random
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime

import config
import stores
from schemas.status_update import Call, Customer, PhoneNumber, StatusUpdate

BATCH, PAGE, DAYS = 2000, 100, 29
LINE = PhoneNumber("+31850835037", "HMS Sovereign Demo")


def fill(environment: dict[str, str], first: int, count: int) -> None:
    """Keep the updates from `first` on; both of each call are spread over the DAYS until now."""
    store = stores.create(config.load(environment))
    for start in range(first, first + count, BATCH):
        with at_once(store):
            for update in made_up(start, min(BATCH, first + count - start), first + count):
                now = update.received_at.timestamp()
                store.record(update, [], now, now=now)
        print(f"\r{start + BATCH:9} kept", end="", file=sys.stderr, flush=True)
    store.close()


def made_up(first: int, count: int, of: int) -> Iterator[StatusUpdate]:
    """One call in ten ends with an error."""
    for index in range(first, first + count, 2):
        started = time.time() - DAYS * 86400 * (1 - index / of) - 600
        id, caller = str(uuid.uuid4()), Customer(f"+316{index % 10**8:08}")
        last = ("ended-with-error", "STT connection failed") if index % 20 == 0 else ("ended", None)
        for status, error, at in (("in-progress", None, started), (*last, started + random.uniform(10, 500))):
            moment = datetime.fromtimestamp(at, UTC)
            yield StatusUpdate(Call(id, status, "inbound_phone_call"), moment, moment, LINE, caller, error)


@contextmanager
def at_once(store: stores.Store) -> Iterator[None]:
    """What the verbs answer within it means nothing."""
    if store.name == "sqlite":
        with store.write() as db:
            store.write = lambda **_: nullcontext(db)
            try:
                yield
            finally:
                del store.write
        return
    server, commands = store._store._server, []
    server._evaluate = lambda *command: commands.append(command)
    try:
        yield
    finally:
        del server._evaluate
    send(server, commands)


def send(server: object, commands: list[tuple]) -> None:
    from stores.redis_server import _HASHES, _SCRIPTS

    connection = server._connections[0]
    for verb in {verb for verb, *_ in commands}:
        connection.send_command("SCRIPT", "LOAD", _SCRIPTS[verb])
        connection.read_response()
    for start in range(0, len(commands), PAGE):
        page = [("EVALSHA", _HASHES[verb], 0, verb, *rest) for verb, *rest in commands[start : start + PAGE]]
        connection.send_packed_command(connection.pack_commands(page))
        for _ in page:
            connection.read_response()
