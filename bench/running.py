"""Who is measured, the receiver itself and what a user would pick in its place, and how each is started."""

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import requests

from bench import load
from bench.processes import PATIENCE, ROOT, SECRET, Crm, Postgres, Process, Redis, cpu, memory
from tests.loopback import free_port, wait_until

PASSWORD = "a password of the benches"


@dataclass(frozen=True)
class Contestant:
    """`web` and `worker` are commands, the second of what it needs beside its web server."""

    name: str
    web: str
    worker: str = ""
    server: type[Redis] | type[Postgres] | None = None
    crm: bool = False
    processes: int = 2


class Running:
    """A contestant's processes and its database server; `started` is when the latter ran."""

    def __init__(self, contestant: Contestant, folder: Path, **settings: str):
        self.contestant, self.port = contestant, free_port()
        self.url, port = f"http://127.0.0.1:{self.port}", str(self.port)
        addresses = {"PORT": port, "UVICORN_PORT": port, "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{port}"}
        self.environment = settings | addresses | {"WEB_CONCURRENCY": str(contestant.processes)}
        self.environment |= {"WEBHOOK_SECRET": SECRET, "DASHBOARD_PASSWORD": PASSWORD}
        self.environment["SQLITE_PATH"] = str(folder / "calls.db")
        self.server = contestant.server(folder) if contestant.server else None
        if self.server:
            self.environment[self.server.setting] = self.server.url
        commands = filter(None, (contestant.web, contestant.worker))
        self.log = folder / "log"
        self.processes = [Process(command, self.log, **self.environment) for command in commands]
        self.up: list[Process | Redis | Postgres] = []

    def start(self) -> None:
        """Start everything, and post updates until the first is acknowledged."""
        if self.server:
            self.server.start()
            self.up.append(self.server)
        self.started = time.monotonic()
        for process in self.processes:
            process.start()
            self.up.append(process)
        wait_until(self._acknowledges, PATIENCE, self.log)

    def _acknowledges(self) -> bool:
        with suppress(ConnectionRefusedError):
            return load.post(self.port, 1)[0].status == 200
        return False

    def crash(self) -> None:
        """End everything with SIGKILL, the database server last."""
        while self.up:
            self.up.pop().kill()

    def stop(self) -> None:
        while self.up:
            self.up.pop().stop()

    def cpu(self) -> tuple[float, float]:
        """Seconds, of its processes and of its database server."""
        return sum(cpu(process.pid) for process in self.processes), cpu(self.server.pid) if self.server else 0.0

    def pending(self) -> int:
        """How many jobs the receiver says are still to be done; 0 of those that do not tell."""
        if not self.contestant.web.endswith(" app:app"):
            return 0
        health = requests.get(f"{self.url}/healthz", timeout=10).json()
        return int(health["pending"]) + int(health.get("spooled") or 0)

    def memory(self) -> list[float]:
        """Of each process, the web server's first."""
        return [megabytes for process in self.processes for megabytes in memory(process.pid)]


@contextmanager
def running(contestant: Contestant, crm: Crm | None = None, **settings: str) -> Iterator[Running]:
    """Start it in a folder of its own. By then it has acknowledged one update."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if crm:
            settings["CRM_WEBHOOK_URL"] = crm.url
        receiver = Running(contestant, Path(folder), **settings)
        try:
            receiver.start()
            yield receiver
        finally:
            receiver.stop()


BARE_GUNICORN = "gunicorn --config bench/contestants/gunicorn_bare.py bench.contestants."
UVICORN = "uvicorn --no-access-log --log-level warning bench.contestants."
CELERY_WORKER = "celery --app bench.contestants.celery_receiver:celery worker --concurrency 2 --loglevel warning"
NODE = "node bench/contestants/express/"
FLOOR = Contestant("empty Flask route", BARE_GUNICORN + "floor:app")
SQLITE = Contestant("SQLite", "gunicorn app:app")
POSTGRES = replace(SQLITE, name="PostgreSQL", server=Postgres)
SQLITE_CRM = replace(SQLITE, name="SQLite + CRM", crm=True)
POSTGRES_CRM = replace(POSTGRES, name="PostgreSQL + CRM", crm=True)
FASTAPI = Contestant("FastAPI on PostgreSQL + CRM", UVICORN + "fastapi_receiver:app", "", Postgres, crm=True)
CELERY = Contestant("Flask + Celery + CRM", BARE_GUNICORN + "celery_receiver:app", CELERY_WORKER, Redis, crm=True)
BULLMQ = Contestant("Express + BullMQ + CRM", NODE + "receiver.js", NODE + "worker.js", Redis, crm=True)


def available(contestants: Iterable[Contestant]) -> list[Contestant]:
    """Those that this machine can run."""
    node = shutil.which("node") and (ROOT / "bench/contestants/express/node_modules").exists()
    return [one for one in contestants if node or not one.web.startswith("node")]
