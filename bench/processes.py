"""What a benchmark starts: processes that it measures by /proc, and that all end with it."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.postgres import state

ROOT = Path(__file__).parent.parent
SECRET = "whsec_benchmark"
PASSWORD = "a password"
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 20  # seconds for a process to start or end


class Process:
    """A process in a session of its own, with its children; `log` gets what it prints."""

    def __init__(self, *command: str, log: Path, ends_by: int = signal.SIGTERM, **environment: str):
        self.command, self.log, self.ends_by = [*map(str, command)], log, ends_by
        self.environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environment}
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.popen = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        """Return once it has printed `text` since its last start."""
        wait_until(lambda: text.encode() in self.log.read_bytes()[self._log_start :])

    def pids(self) -> list[int]:
        """Its own first, then those of all that descend from it."""
        found = [self.popen.pid]
        for pid in found:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with suppress(OSError):  # it ended meanwhile
                    found += map(int, children.read_text().split())
        return found

    def _read(self, name: str) -> Iterator[str]:
        for pid in self.pids():
            with suppress(OSError):
                yield Path(f"/proc/{pid}/{name}").read_text()

    def cpu(self) -> float:
        """Seconds of user and system time, of children that have ended too."""
        fields = [text.rpartition(")")[2].split() for text in self._read("stat")]
        return sum(sum(map(int, each[11:15])) for each in fields) / TICKS

    def memory(self) -> float:
        """Megabytes: the proportional set size, in which shared pages are shared out."""
        lines = (line for text in self._read("smaps_rollup") for line in text.splitlines())
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024

    def kill(self, number: int) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def crash(self) -> None:
        """End it and all that descend from it with SIGKILL; return when none is left."""
        pids = self.pids()
        self.kill(signal.SIGKILL)
        self.popen.wait()
        wait_until(lambda: all(state(pid) in "ZX" for pid in pids))

    def stop(self) -> None:
        """Ask it to end, then see to it that it and its children did."""
        self.kill(signal.SIGCONT)
        with suppress(subprocess.TimeoutExpired):
            self.popen.send_signal(self.ends_by)
            self.popen.wait(PATIENCE)
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
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


@contextmanager
def crm(folder: Path, port: int | None = None, delay: str = "0") -> Iterator[tuple[Process, int]]:
    """The made-up CRM, and its port; `delay` in seconds, or `never`."""
    port = port or free_port()
    with running(sys.executable, "-m", "bench.crm", port, delay, log=folder / "crm.log") as process:
        wait_for_port(port)
        yield process, port


def delivered(crm_port: int) -> tuple[int, int, float]:
    """How many requests the CRM was posted, how many updates it has, and the seconds from the first to the last."""
    with urllib.request.urlopen(f"http://127.0.0.1:{crm_port}/", timeout=10) as answer:
        posts, updates, seconds = answer.read().split()
    return int(posts), int(updates), float(seconds)


def gunicorn(app: str, port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", *options, app]


def receiver_environment(folder: Path, **more: str) -> dict[str, str]:
    return {
        "WEBHOOK_SECRET": SECRET,
        "DASHBOARD_PASSWORD": PASSWORD,
        "WEB_CONCURRENCY": "2",
        "SQLITE_PATH": str(folder / "calls.db"),
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def wait_for_port(port: int) -> None:
    def connects() -> bool:
        with suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return True
        return False

    wait_until(connects)


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE, every: float = 0.005) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(every)


def end_on_sigterm() -> None:
    """SIGTERM ends a benchmark as Ctrl-C does: with everything that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
