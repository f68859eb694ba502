"""No update is lost while PostgreSQL is away, in any way that it can be: real gunicorn, a real server, real load."""

import re
import subprocess
from contextlib import ExitStack, closing, contextmanager, suppress
from statistics import median

import psycopg
import pytest
import requests

from tests.conftest import PASSWORD, wait_until
from tests.loopback import Address
from tests.postgres import unprivileged
from tests.test_failures import QUICK, Load, updates_kept, updates_posted


def is_drained(receiver):
    health = receiver.health()
    return health["status"] == "ok" and not health["spooled"] and "spooled_because" not in health


def is_done(receiver):
    """Whether nothing is spooled, and after that nothing pending, as told by a process that has the database."""
    return is_drained(receiver) and not (health := receiver.health())["spooled"] and health["pending"] == 0


def check(load, receiver, service, kept_elsewhere=frozenset()):
    """Everything is acknowledged, soon, and kept, and done."""
    wait_until(lambda: is_done(receiver))
    assert {answer for answer, _ in load.answers} == {200}
    kept = updates_kept(receiver)
    assert kept | kept_elsewhere == load.acknowledged
    assert updates_posted(service).keys() == load.acknowledged
    active = {call_id for call_id, _ in kept} - {call_id for call_id, status in kept if status == "ended"}
    calls = requests.get(f"{receiver.url}/calls.json", auth=("", PASSWORD), timeout=10).json()
    assert calls["counts"] == {"active": len(active), "stale": 0}
    assert {call["id"] for call in calls["active"]} <= active
    times = [seconds for _, seconds in load.answers]
    assert max(times) < 5 and median(times) < 0.5


@contextmanager
def killed(server):
    server.kill()
    yield
    server.start()


@contextmanager
def paused(server):
    server.pause()
    yield
    server.resume()


@contextmanager
def read_only(server):
    server.set_read_only(True)
    yield
    server.set_read_only(False)


@contextmanager
def without_free_connections(server):
    """Other clients take every connection, those that the receiver had too."""
    with ExitStack() as others, psycopg.connect(server.url, autocommit=True, application_name="others") as first:

        def take():
            first.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name <> 'others'")
            with suppress(psycopg.OperationalError):
                while True:
                    others.enter_context(closing(psycopg.connect(server.url, application_name="others")))
            taken = first.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'others'")
            return taken.fetchone() == (int(server.settings["max_connections"]),)

        wait_until(take)
        yield


@contextmanager
def on_a_full_disk(server):
    """No file grows beyond the size that the table of updates has, which is larger than every other file."""
    server.execute(
        "INSERT INTO updates (call_id, status, received_at, kept_at, message, times, last_received_at)"
        " SELECT n, 'filler', 0, 0, repeat('x', 1900), 1, 0 FROM generate_series(1, 1000) AS n;"
        " DELETE FROM updates WHERE status = 'filler'"
    )
    ((size,),) = server.execute("SELECT pg_relation_size('updates')")
    assert size > 2**20  # of a file of the server's log

    def limit(size):
        clients = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        for pids in (lambda: [(server.process.pid,)], lambda: server.execute(clients)):  # the first one's heirs have it
            for (pid,) in pids():
                command = unprivileged("prlimit", f"--pid={pid}", f"--fsize={size}:")
                subprocess.run(command, stderr=subprocess.DEVNULL)  # it may have ended

    limit(size)
    yield
    limit("unlimited")


@pytest.mark.parametrize(
    ("outage", "reason"),
    [
        (killed, "refused"),
        (paused, "no answer|timeout"),
        (read_only, "read-only"),
        (without_free_connections, "too many clients"),
        (on_a_full_disk, "extend"),
    ],
)
def test_nothing_is_lost_and_nobody_waits_long_while_the_server_is(receiver, new_postgres, service, outage, reason):
    server = new_postgres(max_connections=20, autovacuum="off")
    one = receiver(WEB_CONCURRENCY="2", DATABASE_URL=server.url, CRM_WEBHOOK_URL=service.url, limits=QUICK)
    with Load(one) as load:
        load.go_on()
        with outage(server):
            wait_until(lambda: re.search(reason, one.health().get("spooled_because", "")))
            load.go_on()
            assert one.health()["spooled"]
        wait_until(lambda: is_drained(one), 10)
        load.go_on()
    check(load, one, service)


def test_restarts_lose_nothing_of_two_receivers(receiver, new_postgres, service, tmp_path):
    server = new_postgres()
    settings = {"DATABASE_URL": server.url, "CRM_WEBHOOK_URL": service.url, "limits": QUICK}
    both = [receiver(SQLITE_PATH=str(tmp_path / name), **settings) for name in ("one.db", "two.db")]
    with Load(*both) as load:
        for _ in range(3):
            load.go_on()
            server.restart_fast()
    wait_until(lambda: all(map(is_drained, both)), 10)
    for each in both:
        check(load, each, service)


def test_a_failover_is_followed_though_connections_to_the_old_server_stay_open(receiver, new_postgres, service):
    old, new = new_postgres(), new_postgres()
    with Address(old.port) as address:
        one = receiver(DATABASE_URL=old.url_at(address.port), CRM_WEBHOOK_URL=service.url, limits=QUICK)
        with Load(one) as load:
            load.go_on()
            old.set_read_only(True)
            wait_until(lambda: "read-only" in one.health().get("spooled_because", ""))
            address.target = new.port
            wait_until(lambda: is_drained(one), 10)
            load.go_on()
        check(load, one, service, kept_elsewhere=set(old.execute("SELECT call_id, status FROM updates")))
