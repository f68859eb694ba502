"""Nothing is lost when things break: real gunicorn, real services, real kills."""

import json
import os
import random
import re
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count

import pytest
import requests

from schemas.times import isoformat
from tests.conftest import SECRET, URL, message, wait_until

QUICK = {"LEASE": 1.0, "WORKER_LEASE": 2.0, "RETRY_EVERY": 0.05, "RETRY_FIRST": 0.2, "ASK_EVERY": 0.2}


class Load:
    """Clients that post calls, each second of which ends, to these receivers until the block is over.

    `answers` has the status, or the error, and the seconds of each request, `acknowledged` the updates answered 200, by
    call and status."""

    def __init__(self, *receivers, clients=4):
        self.answers, self.acknowledged, self.over = [], set(), threading.Event()
        self.threads = [
            threading.Thread(target=self._post_calls, args=(receivers[number % len(receivers)], f"call-{number}"))
            for number in range(clients)
        ]

    def _post_calls(self, receiver, name):
        session = requests.Session()
        for number in count():
            for status in ("in-progress", "ended")[: 1 + number % 2]:
                if self.over.is_set():
                    return
                self._post(session, receiver.url + URL, status, f"{name}-{number}")

    def _post(self, session, url, status, call_id):
        started = time.monotonic()
        try:
            answer = session.post(url, json=message(status, call_id), timeout=30).status_code
        except requests.RequestException as error:
            answer = repr(error)
        self.answers.append((answer, time.monotonic() - started))
        if answer == 200:
            self.acknowledged.add((call_id, status))

    def go_on(self, updates=50):
        """Return when so many more updates are acknowledged."""
        target = len(self.acknowledged) + updates
        wait_until(lambda: len(self.acknowledged) >= target)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self.over.set()
        for thread in self.threads:
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


def updates_posted(service):
    return Counter((body["call_id"], body["status"]) for body in service.bodies)


def updates_kept(receiver):
    return {(line["call_id"], line["status"]) for line in receiver.exported()}


def test_every_acknowledged_update_survives_kills_and_reaches_the_crm(receiver, service):
    server = receiver(WEB_CONCURRENCY="2", CRM_WEBHOOK_URL=service.url, limits=QUICK)
    with Load(server) as load:
        for turn in range(12):
            load.go_on(15)
            workers = wait_until(server.workers)
            if turn % 4 == 3:
                kill(server.process.pid)
                server.process.wait()
                for worker in workers:
                    kill(worker)
                server.start()
                server.ready()
            else:
                kill(random.choice(workers))
    wait_until(lambda: settled(server))
    kept = updates_kept(server)
    assert load.acknowledged <= kept
    wait_until(lambda: kept <= updates_posted(service).keys())


def test_nothing_is_posted_twice_where_nothing_was_killed_not_even_by_a_deploy(receiver, service):
    service.default = lambda request: (time.sleep(0.02), request.answer())
    server = receiver(WEB_CONCURRENCY="2", CRM_WEBHOOK_URL=service.url)
    with Load(server) as load:
        for _ in range(3):
            load.go_on()
            assert server.stop() == 0
            server.start()
            server.ready()
    wait_until(lambda: settled(server))
    assert load.acknowledged <= updates_posted(service).keys()
    assert set(updates_posted(service).values()) == {1}


def test_sigterm_in_the_middle_of_a_request_answers_it(receiver, service, hanging):
    server = receiver(CRM_WEBHOOK_URL=service.url)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(server.post, message())
        assert hanging.arrived.wait(20)
        server.process.terminate()
        wait_until(lambda: "Handling signal: term" in server.log.read_text())
        hanging.release.set()
    assert (answer.result().status_code, answer.result().text) == (200, "OK")
    assert server.process.wait(30) == 0
    assert len(service.requests) == 1
    assert [line["pending"] for line in server.exported()] == [[]]


def test_a_storm_of_600_failed_calls_makes_a_handful_of_messages_that_add_up(receiver, service):
    server = receiver(
        WEB_CONCURRENCY="2",
        SLACK_WEBHOOK_URL=service.url,
        ALERT_INTERVAL="3",
        limits={"RETRY_EVERY": 0.05, "WORKER_PATIENCE": (0.5, 1.0)},
    )
    errors = ("STT connection failed", "LLM timed out after {} ms", "call {} failed")

    def fail(number):
        error = errors[number % 3].format(1000 + number)
        return server.post(message("ended-with-error", f"call-{number}", error=error)).text

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(fail, range(600))) == {"OK"}
    wait_until(lambda: settled(server))
    numbers = Counter()
    for body in service.bodies:
        error = re.sub("[0-9]+", "#", body["text"].splitlines()[0])
        numbers[error] += 1 + int((re.search("and ([0-9]+) more", body["text"]) or [0, 0])[1])
    assert numbers == dict.fromkeys((f"Call error: {error.replace('{}', '#')}" for error in errors), 200)
    assert len(service.bodies) < 60


@pytest.mark.parametrize("command", [None, ("flask", "--app", "tests.limits", "run", "--port", "PORT")])
def test_what_is_pending_is_done_once_the_service_is_back_with_no_command_typed(receiver, service, command):
    service.default = 501
    server = receiver(*(command or ()), CRM_WEBHOOK_URL=service.url, limits=QUICK)
    for number in range(10):
        assert server.post(message(call_id=f"call-{number}")).text == "OK"
    wait_until(lambda: server.health()["pending"] == 10)  # what was done at once is written a moment later
    service.default = 200
    wait_until(lambda: settled(server))
    assert len(posted(service)) == 10


def test_a_retry_after_a_crash_waits_for_the_lease(receiver, service, hanging):
    server = receiver(CRM_WEBHOOK_URL=service.url, limits=QUICK)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(server.post, message())
        assert hanging.arrived.wait(20)
        kill(server.workers()[0])
    assert isinstance(answer.exception(), requests.RequestException)
    wait_until(lambda: settled(server))
    assert posted(service) == {"call-1": 2}


class TestStoreInTrouble:
    """Each is answered 503 with the message in the log, and over as soon as its cause is, without a restart."""

    def check(self, server, trouble):
        """What is logged of the update that comes while there is `trouble`."""
        assert server.post(message(call_id="before")).text == "OK"
        with trouble:
            answer = server.post(message(call_id="meanwhile"))
            assert answer.status_code == 503
            assert answer.headers["Retry-After"]
            assert requests.get(f"{server.url}/healthz", timeout=30).status_code == 503
        wait_until(lambda: server.post(message(call_id="after")).text == "OK")
        [lost] = [line for line in server.lines() if line["event"] == "refused" and "meanwhile" in str(line)]
        assert "calls.db" in lost["error"]
        return lost

    def test_disk_full(self, receiver, tmp_path):
        server = receiver(limits=QUICK)
        limit = partial(resource.prlimit, int(server.workers()[0]), resource.RLIMIT_FSIZE)

        @contextmanager
        def trouble():
            soft, hard = limit()
            limit((4096, hard))
            yield
            limit((soft, hard))

        (tmp_path / "lines").write_text(json.dumps(self.check(server, trouble())) + "\nnot a line\n")
        done = server.flask("import", "--yes", str(tmp_path / "lines"))
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
        link, disk = tmp_path / "link", tmp_path / "disk"
        disk.mkdir()
        link.symlink_to(disk)

        @contextmanager
        def trouble():
            link.unlink()
            link.symlink_to("/proc")  # where not even root can write
            yield
            link.unlink()
            link.symlink_to(disk)

        self.check(receiver(SQLITE_PATH=str(link / "calls.db")), trouble())

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
        server.post(message(call_id="meanwhile"))  # told of it, unless a thread was told before
        assert server.post(message(call_id="after")).text == "OK"
        assert any("calls.db: replaced while in use" in line.get("error", "") for line in server.lines())
        kept = {line["call_id"] for line in server.exported()}
        assert "after" in kept and "before" not in kept


class TestImport:
    def test_an_export_that_is_imported_again_changes_nothing(self, receiver):
        server = receiver()
        for number in range(5):
            server.post(message(call_id=f"call-{number}"))
        assert server.stop() == 0
        export = server.flask("export", check=True).stdout
        assert server.flask("import", input=export).stdout == "5 kept already\n"
        assert server.flask("export", check=True).stdout == export

    def test_lines_of_a_log_with_a_prefix_and_wrong_lines(self, receiver):
        server = receiver()
        sent = isoformat(datetime.now(UTC) - timedelta(days=1))  # within the retention
        lost = json.dumps({"received_at": sent, "event": "not kept", **message(call_id="lost")})
        wrong = json.dumps(message(call_id=""))
        done = server.flask("import", "--yes", input=f"{sent} app[web.1]: {lost}\n{wrong}\n[1]\n{{}}\n\n")
        assert done.returncode == 1
        assert sorted(done.stdout.splitlines()) == ["1 kept", "1 wrong", "3 passed over"]
        assert "line 2: " in done.stderr and "Length must be between" in done.stderr
        [line] = server.exported()
        assert line["received_at"] == sent

    def test_lines_can_be_posted_to_a_running_receiver(self, receiver):
        server = receiver(WEBHOOK_SECRET=SECRET)
        lines = json.dumps(message(call_id="a")) + "\n" + json.dumps(message(call_id="b"))
        done = server.flask("import", "--url", server.url, input=lines)
        assert (done.returncode, done.stdout) == (0, "2 answered 200\n")
        assert [line["call_id"] for line in server.exported()] == ["a", "b"]
