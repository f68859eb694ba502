"""With DATABASE_URL set: many machines share one server, and what it cannot take waits in a file of each machine's."""

import json
import os
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
import requests

from app import create_app
from stores import StoreError, spool, updates
from tests.conftest import PASSWORD, SECRET, URL, keep_or_spool, keep_update, message, query, signed, update, wait_until
from tests.postgres import END_CONNECTIONS
from tests.test_failures import QUICK, kill, posted, settled
from tests.test_outages import is_done
from work.threads import start_threads


def call_ids(receiver):
    return {line["call_id"] for line in receiver.exported()}


@pytest.fixture
def hanging(service):
    """The service's first answer: 200 once it is released, to whoever still waits for it."""
    hanging = SimpleNamespace(arrived=threading.Event(), release=threading.Event())

    def answer(request):
        hanging.arrived.set()
        hanging.release.wait(20)
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    service.answers.append(answer)
    yield hanging
    hanging.release.set()


@pytest.fixture
def server(new_postgres):
    return new_postgres()


def test_two_receivers_are_one(receiver, postgres, service, tmp_path):
    settings = {"DATABASE_URL": postgres.url, "CRM_WEBHOOK_URL": service.url}
    first, second = (receiver(SQLITE_PATH=str(tmp_path / name), **settings) for name in ("one.db", "two.db"))
    documents = [message(call_id=f"call-{number}") for number in range(10)]
    with ThreadPoolExecutor(2) as pool:  # each update to both at once
        for document in documents:
            answers = pool.map(lambda each: each.post(document).text, (first, second))  # noqa: B023
            assert list(answers) == ["OK", "OK"]
    second.post(message("ended", "call-0"))
    assert first.exported() == second.exported()
    assert len(first.exported()) == len(service.bodies) == 11
    for each in (first, second):
        active = requests.get(f"{each.url}/calls.json", auth=("", PASSWORD), timeout=10).json()["active"]
        assert {call["id"] for call in active} == {f"call-{number}" for number in range(1, 10)}


def test_another_receiver_finishes_what_a_killed_one_had_in_hand(receiver, postgres, service, hanging, tmp_path):
    settings = {"DATABASE_URL": postgres.url, "CRM_WEBHOOK_URL": service.url, "limits": QUICK}
    first, second = (receiver(SQLITE_PATH=str(tmp_path / name), **settings) for name in ("one.db", "two.db"))
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(first.post, message())
        assert hanging.arrived.wait(20)
        [worker] = first.workers()
        kill(first.process.pid)
        kill(worker)
    assert isinstance(answer.exception(), requests.RequestException)
    wait_until(lambda: settled(second))
    assert posted(service) == {"call-1": 2}


def test_what_was_done_while_the_server_went_is_written_when_it_is_back(receiver, server, service, hanging):
    one = receiver(DATABASE_URL=server.url, CRM_WEBHOOK_URL=service.url, limits=QUICK)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(one.post, message())
        assert hanging.arrived.wait(20)
        server.kill()
        hanging.release.set()
    assert answer.result().text == "OK"
    wait_until(lambda: [line for line in one.lines() if line["event"] == "work waits for the store"])
    server.start()
    wait_until(lambda: is_done(one))
    assert posted(service) == {"call-1": 1}
    assert server.execute("SELECT * FROM jobs WHERE state <> 'done'") == []


def test_an_import_is_spooled_and_a_running_receiver_drains_it(receiver, server, service):
    one = receiver(DATABASE_URL=server.url, CRM_WEBHOOK_URL=service.url, limits=QUICK)
    one.post(message(call_id="known"))
    wait_until(lambda: is_done(one))
    server.kill()
    lines = "".join(json.dumps(message(call_id=call_id)) + "\n" for call_id in ("known", "new"))
    done = one.flask("import", "--yes", input=lines)
    assert (done.returncode, done.stdout) == (0, "2 spooled\n")
    server.start()
    wait_until(lambda: is_done(one))
    assert call_ids(one) == {"known", "new"}
    assert posted(service) == {"known": 1, "new": 1}


def test_a_wrong_password_is_told_but_not_shown_and_loses_nothing(receiver, server):
    one = receiver(DATABASE_URL=server.url, limits=QUICK)
    assert one.post(message(call_id="before")).text == "OK"
    with psycopg.connect(server.url, autocommit=True) as admin:
        admin.execute("ALTER USER postgres PASSWORD 'another'")
        admin.execute(END_CONNECTIONS)
        assert one.post(message(call_id="meanwhile")).text == "OK"
        wait_until(lambda: "DATABASE_URL" in one.health().get("spooled_because", ""))
        health = requests.get(f"{one.url}/healthz", auth=("", PASSWORD), timeout=10)
        assert (health.status_code, health.json()["spooled"]) == (200, 1)
        done = one.flask("check")
        assert done.returncode == 1
        assert "1 updates wait in the spool" in done.stdout
        for text in (health.text, done.stderr):
            assert "password authentication failed" in text
        assert server.password not in health.text + done.stdout + done.stderr + one.log.read_text()
        admin.execute(f"ALTER USER postgres PASSWORD '{server.password}'")
    wait_until(lambda: is_done(one))
    assert call_ids(one) == {"before", "meanwhile"}


def test_what_is_spooled_is_exported_and_survives_a_restart_and_leaves_no_number_there(receiver, server, tmp_path):
    server.kill()
    one = receiver(DATABASE_URL=server.url, limits=QUICK)  # which starts all the same
    assert one.post(message()).text == "OK"
    assert one.stop() == 0
    exported = one.flask("export").stdout.splitlines()
    assert [json.loads(line)["call_id"] for line in exported] == ["call-1"]
    server.start()
    one.start()
    one.ready()
    wait_until(lambda: is_done(one))
    assert call_ids(one) == {"call-1"}
    for table in ("updates", "jobs", "calls"):
        assert query(tmp_path / "calls.db.spool", f"SELECT * FROM {table}") == []


@pytest.mark.parametrize("store_settings", ["postgresql"], indirect=True)
class TestDrain:
    def test_one_that_failed_is_taken_up_again_as_soon_as_the_server_takes_updates(self, store, postgres):
        store.check()
        postgres.execute("ALTER TABLE updates RENAME TO away")
        with pytest.raises(StoreError, match="updates"):
            keep_update(store, update(), ["log_event"])
        keep_update(store.spool, update(), ["log_event"])
        with pytest.raises(StoreError, match="updates"):
            spool.drain(store)
        assert spool.waiting(store) == 1
        postgres.execute("ALTER TABLE away RENAME TO updates")
        spool.drain(store)
        assert spool.waiting(store) == 0
        assert [stored.call_id for stored in updates.since(store)] == ["call-1"]

    def test_a_stop_ends_it_after_the_update_in_hand_and_another_goes_on(self, store, monkeypatch):
        stopping, move = threading.Event(), spool._move
        monkeypatch.setattr(spool, "_move", lambda *args: (stopping.set(), move(*args)))
        for call_id in "ab":
            keep_update(store.spool, update(call_id=call_id), [])
        spool.drain(store, stopping.is_set)
        assert [stored.call_id for stored in updates.since(store)] == ["a"]
        spool.drain(store)
        assert [stored.call_id for stored in updates.since(store)] == ["a", "b"]

    def test_an_update_that_the_database_refuses_stays_is_told_once_and_holds_up_no_other(
        self, store, postgres, caplog
    ):
        store.check()
        postgres.execute("ALTER TABLE updates ADD CHECK (call_id <> 'refused')")
        for call_id in ("refused", "taken"):
            keep_update(store.spool, update(call_id=call_id), [])
        for _ in range(2):
            spool.drain(store)
        for db, call_id in ((store, "taken"), (store.spool, "refused")):
            assert [stored.call_id for stored in updates.since(db)] == [call_id]
        assert [record.call_id for record in caplog.records if record.message == "stays spooled"] == ["refused"]

    def test_nobody_is_forgotten_while_an_update_moves_and_who_is_stays_forgotten(
        self, store, store_settings, clock, monkeypatch
    ):
        move, moving, goes_on = spool._move, threading.Event(), threading.Event()

        def move_slowly(*args):
            moving.set()
            goes_on.wait(20)
            return move(*args)

        monkeypatch.setattr(spool, "_move", move_slowly)
        runner = create_app(store_settings | {"CLOCK": clock}).test_cli_runner()
        keep_update(store.spool, update(), [])
        with ThreadPoolExecutor(2) as pool:
            pool.submit(spool.drain, store)
            assert moving.wait(20)
            forget = pool.submit(runner.invoke, args=["forget", "--yes", "+31612345678"])
            wait_until(lambda: re.search(rf"-> FLOCK .* {os.getpid()} ", Path("/proc/locks").read_text()))
            goes_on.set()
        assert forget.result().output == "Removed: 1 calls, 1 updates\n"
        assert (updates.count(store), spool.waiting(store)) == (0, 0)

    def test_nothing_moves_while_somebody_is_forgotten(self, store):
        keep_update(store.spool, update(), [])
        with ThreadPoolExecutor(1) as pool, spool.locked(store.spool):
            drain = pool.submit(spool.drain, store)
            wait_until(lambda: re.search(rf"-> FLOCK .* {os.getpid()} ", Path("/proc/locks").read_text()))
            assert (updates.count(store), spool.waiting(store)) == (0, 1)
        drain.result()
        assert (updates.count(store), spool.waiting(store)) == (1, 0)

    def test_a_spool_that_has_no_room_takes_nothing_more_and_is_drained(self, store):
        keep_update(store.spool, update(), [])
        store.spool._reserve = 10**18
        with pytest.raises(StoreError, match="calls.db.spool: less than 1000000000000 MB are free"):
            keep_update(store.spool, update("ended"), [])
        spool.drain(store)
        assert (updates.count(store), spool.waiting(store)) == (1, 0)

    @pytest.mark.parametrize(("seconds", "is_back"), [(0, False), (20, True)])
    def test_at_a_stop_it_goes_on_until_the_server_is_back_or_the_time_is_over(
        self, store, store_settings, postgres, caplog, seconds, is_back
    ):
        app = create_app(store_settings | {"EPHEMERAL_DISK": True, "STOP": seconds, "RETRY_EVERY": 60})
        app.extensions["store"] = store
        store.check()
        postgres.execute("ALTER TABLE updates RENAME TO away")
        assert keep_or_spool(store, update(), []).outcome == "spooled"
        stop = start_threads(app)
        with ThreadPoolExecutor() as pool:
            stopped = pool.submit(stop)
            if not is_back:
                stopped.result()
            postgres.execute("ALTER TABLE away RENAME TO updates")
        store.probe()
        left = [record.fields for record in caplog.records if "stopped with updates" in record.message]
        assert left == ([] if is_back else [{"spooled": 1}])
        assert (updates.count(store), spool.waiting(store)) == ((1, 0) if is_back else (0, 1))

    def test_an_update_that_cannot_be_read_stays_and_holds_up_no_other(self, store):
        for call_id in ("unreadable", "taken"):
            keep_update(store.spool, update(call_id=call_id), [])
        store.spool.execute("UPDATE updates SET message = '{}' WHERE call_id = 'unreadable'")
        spool.drain(store)
        assert [stored.call_id for stored in updates.since(store)] == ["taken"]


def ruin(path):
    path.write_bytes(b"not a database, but long enough to be taken for one" * 100)


@pytest.mark.parametrize("spoil", [ruin, Path.mkdir])
def test_a_spool_that_cannot_be_used_is_said_and_hinders_nothing(receiver, postgres, tmp_path, spoil):
    spoil(tmp_path / "calls.db.spool")
    one = receiver(DATABASE_URL=postgres.url, limits=QUICK)
    assert one.post(message()).text == "OK"
    health = requests.get(f"{one.url}/healthz", timeout=10)
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    assert "calls.db.spool" in one.health()["spooled_because"]
    assert "The spool cannot be used" in requests.get(f"{one.url}/", auth=("", PASSWORD), timeout=10).text
    for command in (["export"], ["check"], ["forget", "--yes", "+31612345678"]):
        done = one.flask(*command)
        assert done.returncode == 0
        assert "calls.db.spool" in done.stderr
    assert call_ids(one) == set()
    assert one.stop() == 0


def test_where_server_and_spool_are_gone_it_answers_503_and_logs_the_message(receiver, server):
    one = receiver(DATABASE_URL=server.url, WEBHOOK_SECRET=SECRET, SQLITE_PATH="/proc/calls.db")
    server.kill()
    body = json.dumps(message()).encode()
    answer = requests.post(one.url + URL, data=body, headers=signed(body, timestamp=int(time.time())), timeout=30)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    [lost] = [line for line in one.lines() if line["event"] == "refused"]
    assert lost["message"]["call"]["id"] == "call-1"
    assert requests.get(f"{one.url}/healthz", timeout=30).status_code == 503


def test_an_export_moves_from_sqlite_to_postgresql_and_back_unchanged(receiver, postgres, service, tmp_path):
    service.default = (500, {}, b"")
    one = receiver(CRM_WEBHOOK_URL=service.url)
    for number in range(5):
        one.post(message(call_id=f"call-{number}"))
    one.post(message("ended", "call-0"))
    assert one.stop() == 0
    export = one.flask("export", check=True).stdout
    assert '"pending": ["update_crm"]' in export
    for settings in ({"DATABASE_URL": postgres.url}, {"DATABASE_URL": "", "SQLITE_PATH": str(tmp_path / "back.db")}):
        one.environment |= settings
        assert one.flask("import", input=export).stdout == "6 kept\n"
        moved = one.flask("export", check=True).stdout
        assert without_kept_at(moved) == without_kept_at(export)
        export = moved


def without_kept_at(export):
    return [json.loads(line) | {"kept_at": None} for line in export.splitlines()]
