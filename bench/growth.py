"""`make bench-growth`: what an update costs, and what reading takes, with many updates kept.

An empty store's rounds alternate with the full one's. ENGINES, SIZES, ROUNDS and SECONDS in the environment say what
is measured. A million updates are filled in about three minutes in SQLite, in eight in Valkey, where they take 1.4 GB.
"""

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from bench import cost
from bench.fill import fill
from bench.processes import Process, end_on_sigterm, free_port, gunicorn, receiver_environment, running, valkey
from bench.tables import aligned

SIZES = [int(size) for size in os.environ.get("SIZES", "10000,100000,1000000").split(",")]
ENGINES = os.environ.get("ENGINES", "SQLite,Valkey").split(",")
ROUNDS, LOOKS = int(os.environ.get("ROUNDS", 5)), 20
PAGES = ("/", "/live", "/calls.json")


def update_cost(environment: dict[str, str], folder: Path) -> float:
    """Seconds of CPU an update takes, in one round."""
    return with_server(environment, folder, lambda port, server: cost.under_load(port, server)["cpu"])


def page_times(environment: dict[str, str], folder: Path) -> list[float]:
    """How many seconds each of PAGES takes: the median of LOOKS."""

    def look(port: int, _: Process) -> list[float]:
        return [median(timed(f"http://127.0.0.1:{port}{page}") for _ in range(LOOKS)) for page in PAGES]

    return with_server(environment, folder, look)


def with_server(environment: dict[str, str], folder: Path, measure: Callable[[int, Process], object]) -> object:
    port = free_port()
    with running(*gunicorn("app:app", port), log=folder / "server.log", **environment) as server:
        cost.first_200(port)
        return measure(port, server)


def timed(url: str) -> float:
    started = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()
    return time.perf_counter() - started


def export_rate(environment: dict[str, str], folder: Path) -> float:
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


def size(environment: dict[str, str]) -> int:
    """Bytes of the database's file, or of the server's memory."""
    if "REDIS_URL" not in environment:
        return sum(path.stat().st_size for path in Path(environment["SQLITE_PATH"]).parent.glob("calls.db*"))
    import redis

    with redis.Redis.from_url(environment["REDIS_URL"]) as client:
        return client.info("memory")["used_memory"]


def measure(engine: str, stack: ExitStack, folder: Path) -> list[list[str]]:
    stores = {}
    for name in ("empty", "full"):
        (folder / name).mkdir()
        stores[name] = receiver_environment(folder / name)
        if engine == "Valkey":
            _, stores[name]["REDIS_URL"] = stack.enter_context(valkey(folder / name))
    kept, rows, at_first = 0, [], size(stores["full"]) if engine == "Valkey" else 0
    for count in SIZES:
        started = time.monotonic()
        fill(stores["full"], kept, count - kept)
        kept, filled = count, time.monotonic() - started
        bytes_each = (size(stores["full"]) - at_first) / count
        rate, pages = export_rate(stores["full"], folder), page_times(stores["full"], folder)
        rounds = []
        for _ in range(ROUNDS):
            rounds.append([update_cost(stores[name], folder) for name in ("empty", "full")])
        cells = [f"{median(full for _, full in rounds):.0f}", f"{median(full / empty for empty, full in rounds):.2f}"]
        cells += [f"{1000 * seconds:.1f}" for seconds in pages]
        rows.append([engine, f"{count:,}", *cells, f"{rate:.0f}", f"{bytes_each:.0f}", f"{filled:.0f}"])
    return rows


def main() -> None:
    head = ["", "kept", "CPU µs/update", "× empty store", *(f"{page} ms" for page in PAGES)]
    rows = [[*head, "export/s", "bytes/update", "filled in s"]]
    for engine in ENGINES:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            rows += measure(engine, stack, Path(folder))
    print("\r" + " " * 20, end="\r", file=sys.stderr)
    print(aligned(rows))
    print(f"\nMedians of {ROUNDS} rounds of {cost.SECONDS} s, and of {LOOKS} looks at each page, by its answer's time.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
