"""What is Redis' own: its keys, their expiry, connections, and what it says when it cannot."""

import json
import re
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest

import stores.redis
from app import create_app
from stores import Refused, Row, StoreError
from stores.redis import RedisStore
from tests.conftest import NOW, ROOT, URL, free_port, message, update

RETENTION = 30 * 24 * 3600
LEASE = NOW + 60
HANDLERS = ("log_event", "update_crm")

VERBS = {
    "record": lambda store: store.record(update("ended"), HANDLERS, LEASE, now=NOW),
    "settle": lambda store: store.settle(update(), LEASE, HANDLERS, []),
    "take": lambda store: store.take("log_event", LEASE, LEASE + 60),
    "hurry": lambda store: store.hurry(NOW),
    "track": lambda store: store.track(update("ended")),
    "active": lambda store: store.active(),
    "recent": lambda store: store.recent(50, "call-1"),
    "call": lambda store: store.call("call-1"),
    "figures": lambda store: store.figures(0),
    "updates": lambda store: [*store.updates()],
    "backlog": lambda store: store.backlog(),
    "check": lambda store: store.check(),
    "forget": lambda store: store.forget("+31612345678"),
    "prune": lambda store: store.prune(NOW, 100),
}


@pytest.fixture
def store(valkey):
    store = RedisStore(valkey.url, RETENTION)
    yield store
    store.close()


def keep(store, *args, pending=HANDLERS, **fields):
    one = update(*args, **fields)
    store.record(one, pending, LEASE, now=NOW)
    return one


def keep_some(store):
    """Something of everything: pending, failed and settled rows, active and ended calls."""
    for index, status in enumerate(("in-progress", "ended", "ended-with-error")):
        one = keep(store, status, f"call-_+3161234567{index}_x", error="SIP 486")
        failures = [Row("update_crm", NOW if index else None, 1, NOW, "answered 500")]
        store.settle(one, LEASE, ["log_event"], failures if index < 2 else [])


def left(valkey):
    """The keys there are but for those that hold nothing of anybody."""
    return set(valkey.keys()) - {"receiver:position", "receiver:check"}


def test_active_calls_is_a_set_that_anybody_can_read(store, valkey):
    for call_id in ("a", "b", "c"):
        keep(store, call_id=call_id)
    keep(store, "ended", "b")
    keep(store, "ringing", "d")
    assert valkey.type("active_calls") == "set"
    assert valkey.smembers("active_calls") == {"a", "c"}


def test_every_key_is_documented(store, valkey):
    keep_some(store)
    store.track(update("ended", "never recorded"))
    store.check()
    store.claim("prune", NOW, 60)
    store.count_refusals([Refused("stale", 1, NOW)])
    store.claim_report(update("ended-with-error", "call-_+31612345672_x", error="SIP 486"), "update_crm", NOW, 60, 5)
    shapes = {re.sub(r"(updates|due|waiting|failed|errors):.*", r"\1:<>", key) for key in valkey.keys()}
    documented = re.findall(r"`((?:receiver:|active_)[^`]*)`", stores.redis.__doc__)
    assert shapes == {re.sub("<.*>", "<>", key) for key in documented}


def test_every_key_expires_once_nothing_is_pending(store, valkey):
    keep_some(store)
    store.settle(update("ended", "call-_+31612345671_x"), NOW, ["update_crm"], [])
    assert store.backlog()[0].pending == 1
    store.settle(update("ended-with-error", "call-_+31612345672_x"), LEASE, ["update_crm"], [])
    ages = {key: valkey.ttl(key) for key in valkey.keys()}
    assert {key for key, age in ages.items() if not RETENTION - 100 < age <= RETENTION} == set()
    assert store.backlog()[0].failed == 1


def test_nothing_expires_that_is_pending_or_finds_what_is(store, valkey):
    keep(store, call_id="settled", pending=())
    pending = keep(store, call_id="pending")
    ages = {key: valkey.ttl(key) for key in valkey.keys()}
    assert 0 < ages.pop("receiver:updates:settled") <= RETENTION
    assert set(ages.values()) == {-1}
    store.settle(pending, LEASE, HANDLERS[:1], [Row(HANDLERS[1], None, 1, NOW, "answered 404")])
    assert valkey.ttl("receiver:updates:pending") > 0 and valkey.ttl("receiver:settled") > 0
    store.hurry(NOW, failed=True)
    assert valkey.ttl("receiver:updates:pending") == valkey.ttl("receiver:settled") == -1


def test_pruning_takes_what_expired_out_of_every_index(store, valkey):
    keep_some(store)
    for name in ("update_crm", "log_event"):
        while taken := store.take(name, LEASE, LEASE):
            kept, row = taken
            store.settle(update(kept.status, kept.call_id), row.due, [], [Row(name, None, 1, NOW, "x")])
    assert valkey.delete(*valkey.keys("receiver:updates:*")) == 3
    assert [*store.updates()] == []
    assert store.prune(NOW + 1, 100) == (3, 3)
    assert store.figures(0) == store.backlog() == store.recent(50) == []
    assert left(valkey) == set()


def test_an_update_kept_anew_after_it_expired_is_not_pruned_as_the_old_one(store, valkey):
    keep(store, "ended", received_at=NOW - 100, pending=())
    valkey.delete("receiver:updates:call-1")
    keep(store, "ended", received_at=NOW + 100, pending=())
    assert store.prune(NOW, 100) == (1, 0)
    [kept] = store.updates()
    assert kept.received_at == NOW + 100
    assert store.prune(NOW + 200, 100) == (1, 1)
    assert left(valkey) == set()


def test_forgetting_everybody_leaves_no_key(store, valkey):
    keep_some(store)
    store.forget("+31612345678")
    assert left(valkey) <= {"receiver:handlers"}


def test_settling_what_is_not_there_creates_nothing(store, valkey):
    store.settle(update(), LEASE, ["log_event"], [Row("update_crm", NOW, 1, NOW, "x")])
    assert valkey.keys() == []


def test_a_row_whose_update_was_evicted_is_not_taken_and_stops_nobody(store, valkey):
    keep(store, call_id="a")
    keep(store, call_id="b")
    valkey.delete("receiver:updates:a")
    kept, _ = store.take("log_event", LEASE, LEASE + 60)
    assert kept.call_id == "b"


def test_it_goes_on_after_the_server_lost_its_scripts(store, valkey):
    keep(store)
    valkey.script_flush()
    assert store.take("log_event", LEASE, LEASE + 60)
    assert store.record(update("ended"), HANDLERS, LEASE, now=NOW)


def commands(valkey, act, *args, **kwargs):
    """The commands that the server gets while `act` runs."""
    found = []
    with valkey.monitor() as monitor:
        act(*args, **kwargs)
        valkey.echo("done")
        seen = iter(monitor.listen())
        while (command := next(seen))["command"] != "ECHO done":
            found += [command["command"].split()[0]] * (command["client_type"] != "lua")
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_is_one_round_trip(store, valkey, verb):
    keep(store)
    VERBS[verb](store)  # the first may have to bring the script
    assert commands(valkey, VERBS[verb], store) == ["EVALSHA"]


def test_an_update_is_two_round_trips(settings, valkey):
    app = create_app(settings | {"REDIS_URL": valkey.url})
    client = app.test_client()
    client.post(URL, json=message())  # the first brings the scripts
    assert commands(valkey, client.post, URL, json=message("ended")) == ["EVALSHA", "EVALSHA"]
    app.extensions["store"].close()


def connections(valkey):
    """How many the server ever took."""
    return valkey.info("stats")["total_connections_received"]


def test_nothing_connects_before_it_is_used():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.setblocking(False)
        create_app({"TESTING": True, "REDIS_URL": f"redis://127.0.0.1:{listener.getsockname()[1]}"})
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_redis_is_imported_only_where_it_is_used():
    code = "import app, sys; print('redis' in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT), "SQLITE_PATH": "/dev/null"}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment) == b"False\n"


FORKING = """
import os, sys
from stores.redis import RedisStore
store = RedisStore(sys.argv[1], 1000)
store.check()
child = os.fork()
for _ in range(50):
    store.check()
if child:
    sys.exit(os.waitpid(child, 0)[1])
"""


def test_a_forked_child_has_a_connection_of_its_own(valkey):
    before = connections(valkey)
    subprocess.run([sys.executable, "-c", FORKING, valkey.url], cwd=ROOT, check=True, timeout=60)
    assert connections(valkey) - before == 2


def test_many_threads_share_few_connections(valkey):
    before = connections(valkey)
    start = threading.Barrier(20)

    def verb(index):
        start.wait()
        return store.record(update(call_id=f"call-{index}"), (), LEASE, now=NOW)

    with closing(RedisStore(valkey.url, RETENTION, max_connections=3)) as store, ThreadPoolExecutor(20) as pool:
        assert all(pool.map(verb, range(20)))
    assert connections(valkey) - before <= 3


def test_an_app_with_a_redis_url_keeps_calls_there(settings, valkey):
    app = create_app(settings | {"REDIS_URL": valkey.url})
    assert app.test_client().post(URL, json=message()).status_code == 200
    assert valkey.smembers("active_calls") == {"call-1"}
    app.extensions["store"].close()


@contextmanager
def configured(valkey, **values):
    """The server with other settings for a while."""
    before = {name: valkey.config_get(name)[name] for name in values}
    for name, value in values.items():
        valkey.config_set(name, value)
    yield
    for name, value in before.items():
        valkey.config_set(name, value)


@contextmanager
def refused(*words):
    """A StoreError is raised that has these words, and no password."""
    with pytest.raises(StoreError) as caught:
        yield
    assert [word for word in words if word not in str(caught.value)] == []
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def full(valkey, store):
    """A server that has less memory than it needs, with one update kept."""
    keep(store)
    with configured(valkey, maxmemory="1mb", **{"maxmemory-policy": "noeviction"}):
        yield


@pytest.mark.parametrize("verb", ["record", "track", "check"])
def test_a_full_server_takes_no_more(store, full, verb):
    with refused("127.0.0.1", "maxmemory"):
        VERBS[verb](store)


def test_on_a_full_server_pending_work_is_taken_and_settled(store, full):
    _, row = store.take("update_crm", LEASE, LEASE + 60)
    store.settle(update(), row.due, [], [Row("update_crm", NOW, 1, NOW, "answered 500")])
    assert store.hurry(NOW) == 1
    store.settle(update(), LEASE, HANDLERS, [])
    assert store.backlog() == []
    assert store.prune(NOW + 1, 100) == (1, 1)


def test_a_replica_is_read_and_not_written(store, valkey):
    keep(store)
    valkey.replicaof("127.0.0.1", free_port())
    try:
        for verb in ("record", "settle", "take", "check"):
            with refused("127.0.0.1", "replica"):
                VERBS[verb](store)
        assert [call.id for call in store.active()] == ["call-1"]
        assert [kept.call_id for kept in store.updates()] == ["call-1"]
    finally:
        valkey.replicaof("NO", "ONE")


@pytest.mark.parametrize("user", ["nobody:hush", "limited:hush2", "limited:hush"])
def test_a_wrong_password_is_told_as_such(valkey, user):
    valkey.acl_setuser("limited", enabled=True, passwords=["+hush"], commands=["+ping"])
    with closing(RedisStore(valkey.url.replace("//", f"//{user}@"), RETENTION)) as store:
        for verb in ("record", "check"):
            with refused("127.0.0.1", "password", "REDIS_URL"):
                VERBS[verb](store)
    valkey.acl_deluser("limited")


def test_a_server_that_is_down_is_told_by_its_address():
    port = free_port()
    with closing(RedisStore(f"redis://:hush@127.0.0.1:{port}", RETENTION)) as store:
        for verb in ("record", "check", "active"):
            with refused(f"127.0.0.1:{port}"):
                VERBS[verb](store)


def test_a_socket_that_is_not_there_is_told_by_its_path(tmp_path):
    with closing(RedisStore(f"unix://{tmp_path}/redis.sock", RETENTION)) as store:
        with refused(f"{tmp_path}/redis.sock"):
            store.check()


class Server(socketserver.ThreadingTCPServer):
    """It gives each command the same answer; where that is empty, it hangs up on scripts. Counts the scripts."""

    daemon_threads = True

    def __init__(self, answer):
        super().__init__(("127.0.0.1", 0), None)
        self.answer, self.scripts = answer, 0
        self.url = f"redis://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def finish_request(self, connection, address):
        while command := connection.recv(65536):
            self.scripts += b"EVALSHA" in command
            if not self.answer and b"EVALSHA" in command:
                return
            connection.sendall(self.answer or b"+OK\r\n")


@contextmanager
def server(answer):
    server = Server(answer)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (b"-LOADING server is loading the dataset in memory\r\n", "loading"),
        (b"-MISCONF errors writing to the disk\r\n", "writing to the disk"),
        (b"-NOAUTH Authentication required.\r\n", "REDIS_URL"),
        (b"-NOPERM no permissions to run the 'evalsha' command\r\n", "REDIS_URL"),
        (b"HTTP/1.1 400 Bad Request\r\n", "127.0.0.1"),
        (b"", "127.0.0.1"),
    ],
)
def test_whatever_the_server_says_is_told(answer, word):
    with server(answer) as says, closing(RedisStore(says.url, RETENTION)) as store:
        for verb in ("record", "check"):
            with refused(word):
                VERBS[verb](store)


def test_a_server_that_hangs_is_not_waited_for():
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        with closing(RedisStore(f"redis://127.0.0.1:{listener.getsockname()[1]}", RETENTION)) as store:
            with refused("no answer within 0.5 s"):
                VERBS["record"](store)


@pytest.mark.parametrize("verb", VERBS)
def test_what_is_harmless_to_repeat_is_tried_once_more(verb):
    with server(b"") as hangs_up, closing(RedisStore(hangs_up.url, RETENTION)) as store:
        with refused("127.0.0.1"):
            VERBS[verb](store)
        assert hangs_up.scripts == (1 if verb in ("record", "hurry", "forget", "prune") else 2)


@pytest.fixture
def tls_port(valkey_server):
    """In front of the server, what speaks TLS with a certificate that nobody knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ROOT / "tests/self_signed.pem")

    class Front(Server):
        def finish_request(self, connection, address):
            try:
                with context.wrap_socket(connection, server_side=True) as client:
                    with socket.create_connection(("127.0.0.1", valkey_server.port)) as inner:
                        while command := client.recv(65536):
                            inner.sendall(command)
                            client.sendall(inner.recv(65536))
            except OSError:
                pass  # a client that does not speak TLS, or does not trust us

    front = Front(b"")
    yield front.server_address[1]
    front.shutdown()
    front.server_close()


def test_a_certificate_that_nobody_knows_is_refused_unless_told_otherwise(valkey, tls_port):
    url = f"rediss://localhost:{tls_port}"
    with closing(RedisStore(url, RETENTION)) as store:
        with refused("localhost", "CERTIFICATE_VERIFY_FAILED", "set REDIS_TLS_VERIFY=false"):
            store.check()
    with closing(RedisStore(url, RETENTION, verify_tls=False)) as store:
        assert store.check() is None
    assert valkey.exists("receiver:check")


def test_no_tls_where_it_is_expected_is_told_as_such(valkey):
    with closing(RedisStore(valkey.url.replace("redis:", "rediss:"), RETENTION)) as store:
        with refused("127.0.0.1", "REDIS_URL starts with redis://"):
            store.check()


def test_tls_where_it_is_not_expected_is_told_as_such(tls_port):
    with closing(RedisStore(f"redis://127.0.0.1:{tls_port}", RETENTION)) as store:
        with refused("127.0.0.1", "REDIS_URL starts with rediss://"):
            store.check()


def test_how_durable_it_is_tells_the_server_and_no_password():
    told = RedisStore("redis://user:hush@redis.example.com:6380/1", RETENTION).durability
    assert "redis.example.com:6380" in told
    assert "hush" not in told


def test_a_state_is_json_that_anybody_can_read(store, valkey):
    keep(store)
    assert json.loads(valkey.hget("receiver:calls", "call-1"))["status"] == "in-progress"


def test_it_advises_of_eviction_persistence_and_how_much_still_fits(store, valkey):
    assert [sentence.split(":")[0] for sentence in store.advice()] == ["This server appends to no file"]
    used = int(valkey.info("memory")["used_memory"])
    valkey.config_set("maxmemory", used + 1450 * 1000)
    valkey.config_set("maxmemory-policy", "allkeys-lru")
    try:
        evicts, _, fit = store.advice()
    finally:
        valkey.config_set("maxmemory", 0)
        valkey.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in evicts
    assert 900 < int(fit.split()[1].replace(",", "")) <= 1000
