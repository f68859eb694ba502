"""`make bench-growth`: what an update costs, and what reading takes, with a million updates kept.

A tenth of the calls were in the last day. An empty database's rounds alternate with the full one's. DATABASES, SIZES,
ROUNDS and SECONDS in the environment say what is measured.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from urllib.parse import quote

from bench import cost, fill
from bench.contestants import Started
from bench.processes import PASSWORD, end_on_sigterm, free_port, gunicorn, receiver_environment, running
from bench.servers import postgres
from bench.tables import aligned

SIZES = [int(size) for size in os.environ.get("SIZES", "1000000").split(",")]
DATABASES = os.environ.get("DATABASES", "SQLite,PostgreSQL").split(",")
ROUNDS, LOOKS = int(os.environ.get("ROUNDS", 5)), 20
PAGES = ("/", "/?search=", "/live", "/calls.json")

Environment = dict[str, str]


def update_cost(environment: Environment, folder: Path) -> float:
    """The µs of CPU that an update takes, in one round."""
    return with_receiver(environment, folder, lambda receiver: cost.under_load(receiver)["cpu"])


def page_times(environment: Environment, folder: Path, searched: str) -> list[float]:
    """How many seconds each of PAGES takes: the median of LOOKS."""
    pages = [f"{page}{quote(searched)}" if page.endswith("=") else page for page in PAGES]

    def look(receiver: Started) -> list[float]:
        return [median(timed(f"http://127.0.0.1:{receiver.port}{page}") for _ in range(LOOKS)) for page in pages]

    return with_receiver(environment, folder, look)


def with_receiver(environment: Environment, folder: Path, measure: Callable[[Started], object]) -> object:
    port = free_port()
    with running(*gunicorn("app:app", port), log=folder / "web.log", **environment) as process:
        cost.first_200(port)
        return measure(Started(port, 0, [process], None))


def timed(url: str) -> float:
    login = b64encode(f":{PASSWORD}".encode()).decode()
    request = urllib.request.Request(url, headers={"Authorization": f"Basic {login}"})
    started = time.perf_counter()
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - started


def export_rate(environment: Environment, folder: Path) -> float:
    """How many updates `flask export` prints a second."""
    started = time.perf_counter()
    with (folder / "export").open("wb") as file:
        subprocess.run(
            [sys.executable, "-m", "flask", "export"],
            cwd=cost.ROOT,
            env={"PATH": os.environ["PATH"], **environment},
            stdout=file,
            check=True,
        )
    took = time.perf_counter() - started
    with (folder / "export").open("rb") as file:
        return sum(1 for _ in file) / took


def clean_up(environment: Environment) -> None:
    """What the server itself does before long, so that it does not do it while something is measured."""
    if url := environment.get("DATABASE_URL"):
        execute(url, "VACUUM ANALYZE")
        execute(url, "CHECKPOINT")


def size(environment: Environment) -> int:
    """Bytes of the database's file, or of its tables and their indexes."""
    if url := environment.get("DATABASE_URL"):
        return execute(url, "SELECT pg_database_size(current_database())")
    return sum(path.stat().st_size for path in Path(environment["SQLITE_PATH"]).parent.glob("calls.db*"))


def execute(url: str, sql: str) -> int | None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql)
        return cursor.fetchone()[0] if cursor.description else None


def measure(database: str, stack: ExitStack, folder: Path) -> list[list[str]]:
    environments = {}
    for name in ("empty", "full"):
        (folder / name).mkdir()
        environments[name] = receiver_environment(folder / name)
        if database == "PostgreSQL":
            _, environments[name]["DATABASE_URL"] = stack.enter_context(postgres(folder / name))
    full, kept, rows = environments["full"], 0, []
    at_first = size(full)
    for count in SIZES:
        started = time.monotonic()
        fill.fill(full, kept, count - kept)
        kept, filled = count, time.monotonic() - started
        clean_up(full)
        bytes_each, rate = (size(full) - at_first) / count, export_rate(full, folder)
        pages = page_times(full, folder, fill.number(count // 4 * 2))
        rounds = [[update_cost(environments[name], folder) for name in ("empty", "full")] for _ in range(ROUNDS)]
        cells = [f"{median(full for _, full in rounds):.0f}", f"{median(full / empty for empty, full in rounds):.2f}"]
        cells += [f"{1000 * seconds:.1f}" for seconds in pages]
        rows.append([database, f"{count:,}", *cells, f"{rate:.0f}", f"{bytes_each:.0f}", f"{filled:.0f}"])
    return rows


def main() -> None:
    head = ["", "kept", "CPU µs/update", "× empty", *(f"{page} ms" for page in PAGES)]
    rows = [[*head, "export/s", "bytes/update", "filled in s"]]
    for database in DATABASES:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            rows += measure(database, stack, Path(folder))
    print("\r" + " " * 20, end="\r", file=sys.stderr)
    print(aligned(rows))
    print(f"\nMedians of {ROUNDS} rounds of {cost.SECONDS} s, and of {LOOKS} looks at each page, by its answer's time.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
