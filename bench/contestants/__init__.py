"""What is measured: the receiver itself, and what a user would pick in its place."""

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.processes import Process, free_port, gunicorn, receiver_environment, running
from bench.servers import SERVERS

HERE = Path(__file__).parent
EMPTY = ("--config", "bench/contestants/gunicorn_empty.py")
UVICORN = [sys.executable, "-m", "uvicorn", "--workers", "2", "--no-access-log", "--log-level", "warning"]
CELERY = [sys.executable, "-m", "celery", "--app", "bench.contestants.celery_receiver:celery", "worker"]
NODE_MODULES = HERE / "express/node_modules"
URLS = {"PostgreSQL": "DATABASE_URL", "Redis": "REDIS_URL"}


@dataclass(frozen=True)
class Contestant:
    name: str
    app: str
    database: str = ""  # the server it needs, of SERVERS
    crm: bool = False
    workers: int = 2  # of gunicorn
    worker: list[str] = field(default_factory=list)  # the command of the process beside the web server, if it needs one

    def command(self, port: int) -> list[str]:
        if self.app.endswith(".js"):
            return ["node", str(HERE / self.app)]
        if "fastapi" in self.app:
            return [*UVICORN, "--port", str(port), self.app]
        return gunicorn(self.app, port, *([] if self.app == "app:app" else EMPTY))

    def missing(self) -> str:
        """What has to be installed first; empty where nothing is."""
        if self.app.endswith(".js"):
            return "" if shutil.which("node") and NODE_MODULES.exists() else "node and npm"
        return ""


@dataclass
class Started:
    """A contestant that runs: its processes, in the order they were started, and its database server."""

    port: int
    since: float  # of time.perf_counter, when the database server ran already
    processes: list[Process]
    database: Process | None

    def cpu(self) -> float:
        return sum(process.cpu() for process in self.processes)

    def database_cpu(self) -> float:
        return self.database.cpu() if self.database else 0

    def memory(self) -> float:
        return sum(process.memory() for process in self.processes)

    def count(self) -> int:
        return sum(len(process.pids()) for process in self.processes)

    def crash(self) -> None:
        """End everything, the database server too, with SIGKILL."""
        for process in [*self.processes, self.database]:
            if process:
                process.crash()

    def start(self) -> None:
        if self.database:
            self.database.start()
            self.database.wait_for("eady to accept")
        for process in self.processes:
            process.start()


@contextmanager
def started(contestant: Contestant, folder: Path, crm_port: int | None = None) -> Iterator[Started]:
    with ExitStack() as stack:
        database, port = None, free_port()
        environment = receiver_environment(folder, PORT=str(port), WEB_CONCURRENCY=str(contestant.workers))
        if contestant.database:
            database, url = stack.enter_context(SERVERS[contestant.database](folder))
            environment[URLS[contestant.database]] = url
        if crm_port:
            environment["CRM_WEBHOOK_URL"] = f"http://127.0.0.1:{crm_port}/"
        since = time.perf_counter()
        commands = [contestant.command(port), contestant.worker]
        processes = [
            stack.enter_context(running(*command, log=folder / f"{name}.log", **environment))
            for name, command in zip(("web", "worker"), commands, strict=True)
            if command
        ]
        yield Started(port, since, processes, database)


FLOOR = Contestant("empty Flask route", "bench.contestants.floor:app")
SQLITE, SQLITE_CRM = Contestant("SQLite", "app:app"), Contestant("SQLite + CRM", "app:app", crm=True)
POSTGRES = Contestant("PostgreSQL", "app:app", "PostgreSQL")
POSTGRES_CRM = Contestant("PostgreSQL + CRM", "app:app", "PostgreSQL", crm=True)
FASTAPI = Contestant("FastAPI on PostgreSQL", "bench.contestants.fastapi_receiver:app", "PostgreSQL")
FASTAPI_CRM = Contestant("FastAPI + CRM", FASTAPI.app, "PostgreSQL", crm=True)
CELERY_CRM = Contestant(
    "Flask + Celery + CRM",
    "bench.contestants.celery_receiver:app",
    "Redis",
    crm=True,
    worker=[*CELERY, "--concurrency", "2", "--loglevel", "warning"],
)
BULLMQ_CRM = Contestant(
    "Express + BullMQ + CRM", "express/receiver.js", "Redis", crm=True, worker=["node", str(HERE / "express/worker.js")]
)
TEXTBOOK = Contestant("textbook Flask on Redis", "bench.contestants.textbook:app", "Redis")
ALL = (
    FLOOR,
    SQLITE,
    SQLITE_CRM,
    POSTGRES,
    POSTGRES_CRM,
    FASTAPI,
    FASTAPI_CRM,
    CELERY_CRM,
    BULLMQ_CRM,
    TEXTBOOK,
)
