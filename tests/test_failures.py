"""Nothing is lost when things break: real gunicorn, real services, real kills."""

import json
import os
import random
import re
import resource
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import requests

from schemas.times import isoformat
from tests.conftest import SECRET, URL, message, query, wait_until

QUICK = {"LEASE": 1.0, "RETRY_EVERY": 0.05, "RETRY_FIRST": 0.2, "PROBE_EVERY": 0.2}


@contextmanager
def load(server, answers=None, clients=4):
    """Post updates from several clients until the block ends; yields the ids of those answered 200, and counts all
    answers in `answers`."""
    acknowledged, end = [], threading.Event()

    def run(name):
        session, number = requests.Session(), 0
        while not end.is_set():
            number += 1
            document = message(call_id=f"{name}-{number}")
            try:
                status = session.post(server.url + URL, json=document, timeout=10).status_code
                if answers is not None:
                    answers[status] += 1
                if status == 200:
                    acknowledged.append(document["message"]["call"]["id"])
            except requests.RequestException:
                session = requests.Session()

    threads = [threading.Thread(target=run, args=(name,)) for name in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield acknowledged
    finally:
        end.set()
        for thread in threads:
            thread.join()


def kill(pid):
    try:
        os.kill(int(pid), signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself


def settled(server):
    try:
        return server.health().get("pending") == 0
    except requests.ConnectionError:
        return False  # its worker is being started again


def posted(service):
    return Counter(body["call_id"] for body in service.bodies)


def test_every_acknowledged_update_survives_kills_and_reaches_the_crm(receiver, service):
    server = receiver(WEB_CONCURRENCY="2", CRM_WEBHOOK_URL=service.url, limits=QUICK)
    with load(server) as acknowledged:
        for turn in range(12):
            target = len(acknowledged) + 15
            wait_until(lambda: len(acknowledged) >= target)  # noqa: B023
            if turn % 4 == 3:
                workers = server.workers()
                kill(server.process.pid)
                server.process.wait()
                for worker in workers:
                    kill(worker)
                server.start()
                server.ready()
            else:
                wait_until(server.workers)
                kill(random.choice(server.workers()))
    wait_until(lambda: settled(server), 60)
    exported = {line["call_id"] for line in server.exported()}
    assert len(acknowledged) >= 180
    assert set(acknowledged) <= exported
    wait_until(lambda: exported <= posted(service).keys())


def test_nothing_is_posted_twice_where_nothing_was_killed_not_even_by_a_deploy(receiver, service):
    service.default = lambda request: (time.sleep(0.02), request.send_response(204), request.end_headers())
    server = receiver(WEB_CONCURRENCY="2", CRM_WEBHOOK_URL=service.url)
    with load(server) as acknowledged:
        for _ in range(3):
            target = len(acknowledged) + 50
            wait_until(lambda: len(acknowledged) >= target)  # noqa: B023
            assert server.stop() == 0
            server.start()
            server.ready()
    wait_until(lambda: settled(server))
    assert set(acknowledged) <= posted(service).keys()
    assert set(posted(service).values()) == {1}


def test_sigterm_in_the_middle_of_a_request_answers_it(receiver, service):
    arrived, release, answers = threading.Event(), threading.Event(), []

    def slow(request):
        arrived.set()
        release.wait(20)
        request.send_response(204)
        request.end_headers()

    service.default = slow
    server = receiver(CRM_WEBHOOK_URL=service.url)
    client = threading.Thread(target=lambda: answers.append(server.post(message())))
    client.start()
    assert arrived.wait(20)
    server.process.terminate()
    wait_until(lambda: "Handling signal: term" in server.log.read_text())
    release.set()
    client.join()
    assert (answers[0].status_code, answers[0].text) == (200, "OK")
    assert server.process.wait(30) == 0
    assert len(service.requests) == 1
    assert [line["pending"] for line in server.exported()] == [[]]


def test_a_storm_of_600_failed_calls_makes_a_handful_of_messages_that_add_up(receiver, service):
    server = receiver(
        WEB_CONCURRENCY="2",
        SLACK_WEBHOOK_URL=service.url,
        ALERT_INTERVAL="3",
        limits={"RETRY_EVERY": 0.05, "OUTBOUND_TIMEOUT": 1.0},
    )
    errors = ("STT connection failed", "LLM timed out after {} s", "SIP {}")

    def fail(number):
        error = errors[number % 3].format(number)
        assert server.post(message("ended-with-error", f"call-{number}", error=error)).text == "OK"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(600)))
    wait_until(lambda: settled(server), 60)
    told = Counter()
    for body in service.bodies:
        error = re.sub("[0-9]+", "#", body["text"].splitlines()[0])
        told[error] += 1 + int((re.search("and ([0-9]+) more", body["text"]) or [0, 0])[1])
    assert told == dict.fromkeys((f"Call error: {error.replace('{}', '#')}" for error in errors), 200)
    assert len(service.bodies) < 60


@pytest.mark.parametrize("command", [None, ("flask", "--app", "tests.limits", "run", "--port", "PORT")])
def test_what_is_pending_is_done_once_the_service_is_back_with_no_command_typed(receiver, service, command):
    service.default = (501, {}, b"")
    server = receiver(*(command or ()), CRM_WEBHOOK_URL=service.url, limits=QUICK)
    for number in range(10):
        assert server.post(message(call_id=f"call-{number}")).text == "OK"
    assert server.health()["pending"] == 10
    service.default = (200, {}, b"")
    wait_until(lambda: settled(server))
    assert len(posted(service)) == 10


def test_a_retry_after_a_crash_waits_for_the_lease(receiver, service):
    arrived, release = threading.Event(), threading.Event()

    def hang(request):
        arrived.set()
        release.wait(20)

    service.answers.append(hang)
    server = receiver(CRM_WEBHOOK_URL=service.url, limits=QUICK)
    client = threading.Thread(target=lambda: pytest.raises(requests.RequestException, server.post, message()))
    client.start()
    assert arrived.wait(20)
    kill(server.workers()[0])
    client.join()
    wait_until(lambda: settled(server))
    release.set()
    assert posted(service) == {"call-1": 2}


def test_clients_that_stop_in_the_middle_of_a_request_hold_nobody_up(receiver):
    server = receiver()
    half = [
        b"POST /webhooks/status-update HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /webhooks/status-update HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n{",
    ]
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    for number, connection in enumerate(slow):
        connection.sendall(half[number % 2])
    assert server.post(message()).text == "OK"
    for connection in slow:  # each is answered or closed, none is kept
        connection.settimeout(30)
        with closing(connection):
            while connection.recv(4096):
                pass


@pytest.mark.parametrize("deleted", [("-wal",), ("-shm",), ("-wal", "-shm")])
def test_a_log_deleted_under_load_costs_no_update_and_ruins_no_file(receiver, tmp_path, deleted):
    server = receiver(WEB_CONCURRENCY="2")
    with load(server, answers := Counter()) as acknowledged:
        wait_until(lambda: len(acknowledged) >= 50)
        for suffix in deleted:
            Path(f"{tmp_path / 'calls.db'}{suffix}").unlink()
        target = len(acknowledged) + 50
        wait_until(lambda: len(acknowledged) >= target)
    assert answers.keys() <= {200, 503}
    assert server.stop() == 0
    assert query(tmp_path / "calls.db", "PRAGMA integrity_check") == [("ok",)]
    assert set(acknowledged) <= {call_id for (call_id,) in query(tmp_path / "calls.db", "SELECT call_id FROM updates")}


class TestStoreInTrouble:
    """Each is answered 503 with the message in the log, and over as soon as its cause is, without a restart."""

    def check(self, server, trouble):
        assert server.post(message(call_id="before")).text == "OK"
        with trouble:
            answer = server.post(message(call_id="meanwhile"))
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
            assert requests.get(f"{server.url}/healthz", timeout=30).status_code == 503
        wait_until(lambda: server.post(message(call_id="after")).text == "OK")
        [lost] = [line for line in server.lines() if line["event"] == "not kept" and "meanwhile" in str(line)]
        assert "calls.db" in lost["error"]
        return lost

    def test_disk_full(self, receiver, tmp_path):
        server = receiver()
        [worker] = server.workers()

        @contextmanager
        def trouble():
            unlimited = resource.prlimit(int(worker), resource.RLIMIT_FSIZE)
            resource.prlimit(int(worker), resource.RLIMIT_FSIZE, (4096, unlimited[1]))
            yield
            resource.prlimit(int(worker), resource.RLIMIT_FSIZE, unlimited)

        lost = self.check(server, trouble())
        (tmp_path / "lines").write_text(json.dumps(lost) + "\nnot a line\n")
        done = server.flask("import", str(tmp_path / "lines"))
        assert done.stdout.splitlines() == ["1 kept", "1 passed over"]
        wait_until(lambda: settled(server))
        assert {line["call_id"] for line in server.exported()} == {"before", "meanwhile", "after"}

    def test_locked_by_another_program(self, receiver, tmp_path):
        @contextmanager
        def trouble():
            with closing(sqlite3.connect(tmp_path / "calls.db", isolation_level=None)) as db:
                db.execute("BEGIN EXCLUSIVE")
                yield

        assert "locked" in self.check(receiver(), trouble())["error"]

    def test_no_place_to_write(self, receiver, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk")

        @contextmanager
        def trouble():
            (tmp_path / "link").unlink()
            (tmp_path / "link").symlink_to("/proc")  # where not even root can write
            yield
            (tmp_path / "link").unlink()
            (tmp_path / "link").symlink_to(tmp_path / "disk")

        self.check(receiver(SQLITE_PATH=str(tmp_path / "link" / "calls.db")), trouble())

    def test_not_a_database(self, receiver, tmp_path):
        server = receiver()

        @contextmanager
        def trouble():
            for path in tmp_path.glob("calls.db*"):
                path.unlink()
            (tmp_path / "calls.db").write_text("not a database, but long enough to be taken for one" * 100)
            assert server.post(message(call_id="replaced")).status_code == 503
            yield
            (tmp_path / "calls.db").unlink()

        assert "not a database" in self.check(server, trouble())["error"]
        assert [line["call_id"] for line in server.exported()] == ["after"]

    def test_deleted(self, receiver, tmp_path):
        server = receiver()
        assert server.post(message(call_id="before")).text == "OK"
        for path in tmp_path.glob("calls.db*"):
            path.unlink()
        assert server.post(message(call_id="meanwhile")).status_code == 503
        assert server.post(message(call_id="after")).text == "OK"
        [lost] = [line for line in server.lines() if line["event"] == "not kept"]
        assert "calls.db" in lost["error"]
        assert [line["call_id"] for line in server.exported()] == ["after"]


class TestImport:
    def test_an_export_comes_in_as_it_was_and_twice_changes_nothing(self, receiver, service, tmp_path):
        service.default = (500, {}, b"")
        server = receiver(CRM_WEBHOOK_URL=service.url)
        for number in range(5):
            server.post(message(call_id=f"call-{number}"))
        assert server.stop() == 0
        export = server.flask("export", check=True).stdout
        server.environment["SQLITE_PATH"] = str(tmp_path / "other.db")
        assert server.flask("import", input=export).stdout == "5 kept\n"
        assert server.flask("import", input=export).stdout == "5 kept already\n"
        lines = [json.loads(line) for line in export.splitlines()]
        assert [line | {"kept_at": None} for line in server.exported()] == [line | {"kept_at": None} for line in lines]
        assert lines[0]["pending"] == ["update_crm"]

    def test_lines_of_a_log_with_a_prefix_and_wrong_lines(self, receiver):
        server = receiver()
        sent = isoformat(datetime.now(UTC) - timedelta(days=1))  # within the retention
        lost = json.dumps({"time": sent, "event": "not kept", **message(call_id="lost")})
        wrong = json.dumps(message(call_id=""))
        done = server.flask("import", input=f"{sent} app[web.1]: {lost}\n{wrong}\n[1]\n{{}}\n\n")
        assert done.returncode == 1
        assert sorted(done.stdout.splitlines()) == ["1 kept", "1 wrong", "3 passed over"]
        assert "line 2: " in done.stderr and "message.call.id" in done.stderr
        [line] = server.exported()
        assert line["received_at"] == sent

    def test_lines_can_be_posted_to_a_running_receiver(self, receiver):
        server = receiver(WEBHOOK_SECRET=SECRET)
        lines = json.dumps(message(call_id="a")) + "\n" + json.dumps(message(call_id="b"))
        done = server.flask("import", "--url", server.url, input=lines)
        assert (done.returncode, done.stdout) == (0, "2 answered 200\n")
        assert [line["call_id"] for line in server.exported()] == ["a", "b"]
