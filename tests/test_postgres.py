"""What is PostgreSQL's own: connecting, its clock, and what it refuses. The verbs are in test_store.py."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from socket import create_server
from urllib.parse import quote

import psycopg
import pytest

import stores
from app import create_app
from stores import StoreError, calls, jobs, locks, postgres_connections, retention, spool, updates
from stores.records import Job
from tests.conftest import ROOT, keep_or_spool, keep_update, lease_next, settle_jobs, update
from tests.loopback import wait_until
from tests.postgres import END_CONNECTIONS
from work import upkeep

DAY = 24 * 3600.0
AHEAD = 40 * DAY
CLIENTS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


def settings(url, tmp_path):
    return {"DATABASE_URL": url, "SQLITE_PATH": str(tmp_path / "calls.db"), "CLOCK": None}


@pytest.fixture
def connect(tmp_path):
    """A store at a URL, which goes by the server's clock as it does in production."""
    opened = []

    def connect(url):
        opened.append(stores.create(settings(url, tmp_path)))
        return opened[-1]

    yield connect
    for each in opened:
        each.close()


@pytest.fixture
def store(connect, postgres):
    return connect(postgres.url)


@pytest.fixture
def clock_ahead(monkeypatch):
    """Set this process's clock 40 days ahead. Gives the true time."""
    true = time.time
    monkeypatch.setattr(time, "time", lambda: true() + AHEAD)
    return true


def record(store, call_id="call-1", received_at=None, lease=None):
    one = update(call_id=call_id, received_at=store.now() if received_at is None else received_at)
    return keep_update(store, one, ["log_event"], lease)


def refusal(store):
    """Why the store cannot be used, in one line; the same when asked again, and to whoever probes."""
    texts = set()
    for verb in (store.check, store.check, store.probe):
        with pytest.raises(StoreError) as error:
            verb()
        texts.add(str(error.value))
    [text] = texts
    assert store.failure == text
    assert "\n" not in text
    return text


def test_nothing_connects_before_the_first_verb(store, postgres, tmp_path):
    app = create_app(settings(postgres.url, tmp_path))
    with app.app_context():
        assert postgres.execute(CLIENTS) == [(0,)]
    store.check()
    assert postgres.execute(CLIENTS) > [(0,)]


def test_importing_the_app_imports_no_driver_where_there_is_no_url():
    command = [sys.executable, "-c", "import app, sys; assert 'psycopg' not in sys.modules"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "DATABASE_URL": "", "SQLITE_PATH": os.devnull}, check=True)


def test_a_store_that_was_made_before_a_fork_works_on_both_sides(store, postgres, tmp_path):
    program = """
import json, os, sys, stores
from stores import updates
from tests.race import update

store = stores.create(json.loads(sys.argv[1]))
child = next((number for number in (1, 2, 3) if os.fork() == 0), 0)
for step in range(20):
    assert updates.keep(store, update(f"{child}-{step}"))
if child:
    os._exit(0)
assert [os.wait()[1] for _ in range(3)] == [0, 0, 0]
store.close()
"""
    command = [sys.executable, "-c", program, json.dumps(settings(postgres.url, tmp_path))]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, timeout=60)
    assert updates.count(store) == 80


def test_many_threads_share_few_connections(store, postgres):
    start = threading.Barrier(64)

    def write(number):
        start.wait()
        return [record(store, f"call-{number}-{step}") for step in range(5)]

    with ThreadPoolExecutor(64) as pool:
        ids = {update_id for found in pool.map(write, range(64)) for update_id in found}
    assert len(ids) == updates.count(store) == 320
    assert [(2,)] <= postgres.execute(CLIENTS) <= [(8,)]


def test_a_closed_store_lets_go_of_every_connection_and_the_next_verb_opens_one(store, postgres):
    record(store)
    store.close()
    wait_until(lambda: postgres.execute(CLIENTS) == [(0,)])
    assert updates.count(store) == 1
    record(store, "call-2")
    assert updates.count(store) == 2


def test_one_thread_finds_out_that_nobody_answers_and_the_others_do_not_wait_as_long_each(connect):
    with closing(create_server(("127.0.0.1", 0), backlog=32)) as listener:
        store = connect(f"postgresql://postgres@127.0.0.1:{listener.getsockname()[1]}/postgres")
        start = threading.Barrier(8)

        def check(_):
            start.wait()
            with pytest.raises(StoreError) as error:
                store.check()
            return str(error.value)

        with ThreadPoolExecutor(8) as pool:
            assert {*pool.map(check, range(8))} == {store.failure}
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_an_error_in_one_statement_says_why_and_ends_nothing(store):
    record(store)
    with pytest.raises(StoreError, match=r"127\.0\.0\.1:\d+: null value in column"):
        store.execute("INSERT INTO locks VALUES ('x', NULL)")
    assert store.failure == ""
    assert updates.count(store) == 1


def test_tables_that_are_dropped_while_in_use_are_made_anew_by_a_probe(store, postgres):
    record(store)
    postgres.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with pytest.raises(StoreError, match='relation "updates" does not exist'):
        record(store)
    assert "updates" in store.failure
    store.probe()
    assert store.failure == ""
    assert record(store)


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_keep_every_text_is_refused(connect, postgres, encoding):
    postgres.execute(f"CREATE DATABASE other ENCODING '{encoding}' TEMPLATE template0")
    try:
        store = connect(postgres.url.removesuffix("postgres") + "other")
        assert refusal(store).endswith(f": the database's encoding is {encoding}: create one with UTF8")
    finally:
        postgres.execute("DROP DATABASE other WITH (FORCE)")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("postgres:s3cr3t@127.0.0.1:{port}/postgres", ": set DATABASE_URL to the right user and password"),
        ("nobody:{password}@127.0.0.1:{port}/postgres", ": set DATABASE_URL to the right user and password"),
        ("postgres:{password}@127.0.0.1:{port}/nothing", 'database "nothing" does not exist'),
        ("postgres:{password}@127.0.0.1:1/postgres", "Connection refused.*"),
        ("postgres:{password}@127.0.0.1:{port}/postgres?sslmode=require", r": turn TLS on .*, as \?sslmode=prefer"),
    ],
)
def test_why_nothing_connects_is_told_without_the_password(connect, postgres, caplog, url, reason):
    caplog.set_level(logging.DEBUG)
    text = refusal(connect("postgresql://" + url.format(password=postgres.password, port=postgres.port)))
    assert re.fullmatch(rf"127\.0\.0\.1:\d+: .*{reason}", text)
    assert ("password authentication failed" in text) == ("right user" in reason)
    for password in ("s3cr3t", postgres.password):
        assert password not in text + caplog.text


def test_a_user_and_password_of_any_characters_work(connect, postgres):
    user, password = "a %:/@b", "p%s:/@?# w%41"
    postgres.execute(f"CREATE ROLE \"{user}\" SUPERUSER LOGIN PASSWORD '{password}'")
    try:
        server = f"127.0.0.1:{postgres.port}"
        store = connect(f"postgres://{quote(user, safe='')}:{quote(password, safe='')}@{server}/postgres")
        assert record(store)
        assert store.server == server
        store.close()
    finally:
        postgres.empty()
        postgres.execute(f'DROP ROLE "{user}"')


def test_a_process_whose_clock_ran_ahead_leases_as_the_others_do(clock_ahead, store, connect, postgres):
    before = clock_ahead()
    update_id = record(store, lease=store.now() + 60)
    [stored] = updates.since(store)
    assert before - 20 <= stored.kept_at <= clock_ahead() + 20
    assert before + 40 <= stored.jobs[0].due_at <= clock_ahead() + 80
    other = connect(postgres.url)
    assert lease_next(other, "log_event", other.now(), other.now() + 60) is None
    jobs.reset_far_future(other, 80)
    assert [stored.jobs[0].state for stored in updates.since(store)] == ["leased"]
    assert locks.acquire(store, "prune", 60)
    assert not locks.acquire(other, "prune", 60)
    assert before + 40 <= locks.ends_at(other, "prune") <= clock_ahead() + 80
    settle_jobs(store, (update_id, stored.jobs[0].due_at, []))
    calls.note_checked(store, "call-1", unknown=False)
    assert before - 20 <= calls.get(store, "call-1").checked_at <= clock_ahead() + 20


def test_a_process_whose_clock_ran_ahead_prunes_no_more_than_it_should(clock_ahead, postgres, tmp_path):
    app = create_app(settings(postgres.url, tmp_path))
    with app.app_context():
        store = app.extensions["store"]
        for days in (0, 29, 31):
            update_id = record(store, f"{days} days old", clock_ahead() - days * DAY)
            settle_jobs(store, (update_id, None, [Job("log_event", "done", None)]))
        upkeep.upkeep(threading.Event())
        assert {stored.call_id for stored in updates.since(store)} == {"0 days old", "29 days old"}
        assert clock_ahead() + DAY - 60 < locks.ends_at(store, "prune") < clock_ahead() + DAY + 60
        assert retention.prune(store, store.now() - 30 * DAY, 9) == (0, 0)
    store.close()


def test_a_machine_that_slept_knows_the_server_s_time_at_once(store, monkeypatch):
    store.check()
    steady, before = time.clock_gettime, store.now()
    monkeypatch.setattr(time, "clock_gettime", lambda clock: steady(clock) + DAY * (clock == time.CLOCK_BOOTTIME))
    assert before + DAY <= store.now() <= before + DAY + 60


def test_an_answer_is_waited_for_no_longer_than_a_second(store):
    store.check()
    with pytest.raises(StoreError, match="no answer within 1 s"):
        store.query("SELECT pg_sleep(30)")
    with pytest.raises(StoreError, match="no answer within 1 s"), store.transaction() as execute:
        execute("SELECT pg_sleep(30)")
    assert store.failure == ""  # a slow page or a long prune says nothing of the server
    with pytest.raises(StoreError, match="no answer within 1 s"):
        store.execute("SELECT pg_sleep(30)")
    assert "no answer" in store.failure


def test_a_statement_that_is_given_up_goes_on_nowhere(store, postgres):
    store.check()
    with pytest.raises(StoreError, match="no answer within 1 s"):
        store.query("SELECT pg_sleep(3000)")
    going_on = "SELECT * FROM pg_stat_activity WHERE query LIKE '%3000)' AND state = 'active'"
    wait_until(lambda: postgres.execute(f"{going_on} AND pid <> pg_backend_pid()") == [])


def test_connections_that_the_server_closed_are_replaced_and_the_server_has_not_failed(store, postgres):
    with ExitStack() as transactions:
        for _ in range(4):
            transactions.enter_context(store.transaction())
    postgres.execute(END_CONNECTIONS)
    assert record(store)
    assert (store.failure, updates.count(store)) == ("", 1)


def test_the_driver_s_errors_are_all_errors_of_the_store(store, postgres):
    record(store)
    with pytest.raises(StoreError) as error, store.transaction() as execute:
        postgres.execute(END_CONNECTIONS)
        execute("SELECT 1")
    assert isinstance(error.value.__cause__, psycopg.Error)
    store.probe()
    assert updates.count(store) == 1


def test_a_busy_pool_is_no_dead_server_and_the_update_is_spooled(store):
    with ExitStack() as transactions:
        for _ in range(postgres_connections.CONNECTIONS):
            transactions.enter_context(store.transaction())
        assert keep_or_spool(store, update(), ["log_event"]).outcome == "spooled"
        assert store.failure == ""
    spool.drain(store)
    assert [stored.call_id for stored in updates.since(store)] == ["call-1"]


def test_slow_pages_leave_connections_to_updates(store, postgres):
    record(store, "before")
    over = threading.Event()

    def look():
        while not over.is_set():
            with suppress(StoreError):
                store.query("SELECT pg_advisory_lock(1)")

    with psycopg.connect(postgres.url) as other, ThreadPoolExecutor(12) as pages:
        other.execute("SELECT pg_advisory_lock(1)")
        for _ in range(12):
            pages.submit(look)
        try:
            wait_until(lambda: postgres.execute("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(4,)])
            assert all(record(store, f"call-{number}") for number in range(50))
        finally:
            over.set()
    assert store.failure == ""


@pytest.mark.parametrize(
    "setting",
    ["client_encoding = 'LATIN1'", "default_transaction_isolation = 'serializable'", "statement_timeout = '5min'"],
)
def test_what_the_role_sets_makes_no_difference(store, postgres, setting):
    postgres.execute(f"ALTER ROLE postgres SET {setting}")
    try:
        assert keep_update(store, update("ended-with-error", error="\U0001f4de"), [])
        assert calls.get(store, "call-1").error == "\U0001f4de"
        values = [store.query(f"SHOW {name}") for name in ("transaction_isolation", "statement_timeout")]
        assert values == [[("read committed",)], [("900ms",)]]
    finally:
        postgres.execute("ALTER ROLE postgres RESET ALL")


@pytest.mark.parametrize(
    ("granted", "reason"), [("USAGE", "permission denied for schema public"), ("", "no schema has been selected")]
)
def test_a_role_that_may_not_create_tables_is_told_what_to_run(connect, postgres, granted, reason):
    postgres.execute("CREATE ROLE \"a b\" LOGIN PASSWORD 'p'")
    if granted:
        postgres.execute(f'GRANT {granted} ON SCHEMA public TO "a b"')
    try:
        store = connect(f"postgresql://a%20b:p@127.0.0.1:{postgres.port}/postgres")
        text = refusal(store)
        assert reason in text
        postgres.execute(text.partition(": run ")[2])
        store.probe()
        assert record(store)
    finally:
        postgres.empty()
        postgres.execute('DROP OWNED BY "a b"; DROP ROLE "a b"')


def test_tables_that_are_locked_at_a_start_hold_up_an_update_no_longer_than_a_second(connect, postgres):
    record(connect(postgres.url), "before")
    store = connect(postgres.url)
    with psycopg.connect(postgres.url) as restore:
        restore.execute("LOCK TABLE receiver, updates, calls, jobs, locks IN ACCESS EXCLUSIVE MODE")
        assert keep_or_spool(store, update(), ["log_event"]).outcome == "spooled"
        assert "no answer within 1 s" in store.failure
        with pytest.raises(StoreError):
            store.probe()
    spool.drain(store)
    assert [stored.call_id for stored in updates.since(store)] == ["before", "call-1"]


def test_a_server_that_hangs_at_a_start_holds_up_nothing_and_the_probe_makes_the_tables(connect, new_postgres):
    server = new_postgres()
    store = connect(server.url)
    server.pause()
    try:
        assert abs(store.now() - time.time()) < 60
        assert keep_or_spool(store, update(), ["log_event"]).outcome == "spooled"
        with pytest.raises(StoreError, match="no answer within 1 s"):
            spool.drain(store)
    finally:
        server.resume()
    wait_until(lambda: is_drained(store))
    assert [stored.call_id for stored in updates.since(store)] == ["call-1"]


def test_a_server_that_hangs_later_is_given_up_once_and_taken_up_by_the_probe(connect, new_postgres):
    server = new_postgres()
    store = connect(server.url)
    record(store)
    server.pause()
    try:
        with pytest.raises(StoreError, match="no answer within 1 s"):
            record(store, "call-2")
        assert keep_or_spool(store, update(call_id="call-3"), []).outcome == "spooled"
    finally:
        server.resume()
    wait_until(lambda: is_drained(store))
    assert {stored.call_id for stored in updates.since(store)} >= {"call-1", "call-3"}


def is_drained(store):
    with suppress(StoreError):
        spool.drain(store)
        return not store.failure and spool.waiting(store) == 0


def test_a_server_that_went_while_nobody_asked_it_has_failed(connect, new_postgres):
    server = new_postgres()
    store = connect(server.url)
    record(store)
    server.stop()
    with pytest.raises(StoreError):
        record(store, "call-2")
    assert store.failure.endswith("every connection was lost")
    with pytest.raises(StoreError, match="Connection refused"):
        store.probe()
    server.start()
    store.probe()
    assert record(store, "call-2")


def test_a_server_that_has_no_connection_more_for_us_has_not_failed(connect, new_postgres):
    server = new_postgres(max_connections=5, superuser_reserved_connections=0, reserved_connections=0)
    store = connect(server.url)
    store.check()
    with ExitStack() as others, store.transaction() as execute:
        with pytest.raises(psycopg.OperationalError, match="too many clients"):
            for _ in range(5):
                others.enter_context(closing(psycopg.connect(server.url)))
        with pytest.raises(StoreError, match="busy: no connection within 1 s"):
            record(store)
        assert store.failure == ""
        execute("SELECT 1")
    assert record(store)


def test_a_process_that_used_it_ends_and_waits_for_no_thread(postgres, tmp_path):
    program = "import json, sys, stores; stores.create(json.loads(sys.argv[1])).check()"
    command = [sys.executable, "-c", program, json.dumps(settings(postgres.url, tmp_path))]
    subprocess.run(command, cwd=ROOT, check=True, timeout=15)  # those of a pool that is open are waited for 20 s
