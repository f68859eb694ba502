"""`make bench`: what an update costs, beside an empty Flask route and what a user would pick in the receiver's place.

With a CRM, receiver and worker are counted together, until the CRM has every update. Every contestant is started anew
for each round; rounds alternate. ROUNDS, SECONDS, CONNECTIONS and WARMUP (updates) in the environment say how many and
how much; ONLY takes the names of some contestants, separated by commas.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

from bench import contestants, load
from bench.contestants import Contestant, Started
from bench.processes import ROOT, crm, delivered, end_on_sigterm, wait_until
from bench.tables import aligned, spread

ROUNDS, SECONDS = int(os.environ.get("ROUNDS", 7)), float(os.environ.get("SECONDS", 2.5))
CONNECTIONS, WARMUP = int(os.environ.get("CONNECTIONS", 16)), int(os.environ.get("WARMUP", 1000))
LONGEST_DRAIN = 60  # seconds
FLOOR, FASTAPI, CELERY = (each.name for each in (contestants.FLOOR, contestants.FASTAPI_CRM, contestants.CELERY_CRM))
TARGETS = (  # what, contestant, beside, the measure, the limit, the aim; from the design
    ("on SQLite, no outbound service", "SQLite", FLOOR, "cpu", "≤ 3.0", "2.3"),
    ("on PostgreSQL, no outbound service", "PostgreSQL", FLOOR, "cpu", "≤ 3.0", "2.3"),
    ("on SQLite, with a CRM", "SQLite + CRM", FASTAPI, "cpu", "≤ 0.9", "0.7"),
    ("on PostgreSQL, with a CRM", "PostgreSQL + CRM", FASTAPI, "cpu", "≤ 0.9", "0.7"),
    ("on SQLite, with a CRM", "SQLite + CRM", CELERY, "cpu", "≤ 0.55", "0.45"),
    ("on PostgreSQL, with a CRM", "PostgreSQL + CRM", CELERY, "cpu", "≤ 0.55", "0.45"),
    ("updates/s delivered, SQLite", "SQLite + CRM", CELERY, "rate", "≥ 2.0", "2.5"),
    ("updates/s delivered, PostgreSQL", "PostgreSQL + CRM", CELERY, "rate", "≥ 2.0", "2.5"),
    ("cold start to the first 200, SQLite", "SQLite", FLOOR, "start", "≤ 2.0", "1.5"),
    ("cold start to the first 200, PostgreSQL", "PostgreSQL", FLOOR, "start", "≤ 2.0", "1.5"),
)


def measure(contestant: Contestant, folder: Path) -> dict[str, float]:
    """One round: start it, wait for the first 200, warm it up, load it, and check that all was done."""
    with ExitStack() as stack:
        crm_port = stack.enter_context(crm(folder))[1] if contestant.crm else None
        running = stack.enter_context(contestants.started(contestant, folder, crm_port))
        first_200(running.port)
        found = {"start": time.perf_counter() - running.since} | under_load(running, crm_port)
        check(contestant, running, crm_port)
        return found


def under_load(running: Started, crm_port: int | None = None) -> dict[str, float]:
    """What it, warmed up, makes of the load: CPU in µs an update, times in ms."""
    with loader(running, "closed", SECONDS, CONNECTIONS, WARMUP) as go:
        until_delivered(crm_port, first := 1 + WARMUP)
        cpu, database_cpu, began = running.cpu(), running.database_cpu(), time.perf_counter()
        found = go()
        updates = found["updates"]
        until_delivered(crm_port, first + updates)
        took = time.perf_counter() - began if crm_port else found["seconds"]
        cpu, database_cpu = running.cpu() - cpu, running.database_cpu() - database_cpu
    return {
        "cpu": 1e6 * cpu / updates,
        "database": 1e6 * database_cpu / updates,
        "rate": updates / took,
        "acknowledged": updates / found["seconds"],
        "p50": 1000 * found["p50"],
        "p99": 1000 * found["p99"],
        "load": found["cpu_share"],
        "memory": running.memory(),
        "database_memory": running.database.memory() if running.database else 0,
        "processes": running.count(),
        "services": len(running.processes) + bool(running.database),
    }


@contextmanager
def loader(running: Started, mode: str, *options: float) -> Iterator[Callable[[], dict]]:
    """A load that is ready to be started by the call of a function, which returns what came of it."""
    command = [sys.executable, "-m", "bench.load", mode, *map(str, (running.port, *options))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def go() -> dict:
            process.stdin.write("go\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        try:
            if process.stdout.readline() != "ready\n":
                raise RuntimeError(running.processes[0].log.read_text()[-2000:])
            yield go
        finally:
            process.kill()


def until_delivered(crm_port: int | None, updates: int) -> None:
    if crm_port:
        wait_until(lambda: delivered(crm_port)[1] >= updates, LONGEST_DRAIN, every=0.05)


def first_200(port: int) -> None:
    """Post an update every 5 ms until one is acknowledged."""

    def acknowledged() -> bool:
        try:
            connection = load.Connection(port)
            connection.send(load.requests(0)[0], 0)
            while (answer := connection.answered()) is None:
                pass
            connection.socket.close()
            return answer == "OK"
        except ConnectionError:
            return False

    wait_until(acknowledged)


def check(contestant: Contestant, running: Started, crm_port: int | None) -> None:
    """Raise AssertionError unless all was done: nothing pending, and each update posted to the CRM once."""
    if contestant.app == "app:app":
        health = get(running.port, "/healthz")
        assert (health["pending"], health["failed"]) == (0, 0), health
        assert health["store"] == (contestant.database or "sqlite").lower(), health
    if crm_port:
        posts, updates, _ = delivered(crm_port)
        assert posts == updates, f"{updates} updates, {posts} posts"


def get(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return json.load(answer)


def run(chosen: list[Contestant]) -> dict[str, list[dict[str, float]]]:
    results = {each.name: [] for each in chosen}
    for number in range(ROUNDS):
        for each in chosen if number % 2 == 0 else reversed(chosen):
            print(f"\rround {number + 1} of {ROUNDS}: {each.name:30}", end="", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                results[each.name].append(measure(each, Path(folder)))
    print("\r" + " " * 60, end="\r", file=sys.stderr)
    return results


def ratio(results: dict[str, list], name: str, beside: str, measure: str = "cpu") -> str:
    """The median of the rounds' ratios: what slows the machine for a while slows both."""
    if name not in results or beside not in results:
        return ""
    pairs = zip(results[name], results[beside], strict=True)
    return f"{median(one[measure] / other[measure] for one, other in pairs):.2f}"


def report(results: dict[str, list[dict[str, float]]]) -> None:
    rows = [["", "CPU µs/update", "", "× floor", "× FastAPI", "× Celery", "database µs", "updates/s", ""]]
    rows[0] += ["acknowledged/s", "p50 ms", "p99 ms", "PSS MB", "database MB", "processes", "services"]
    rows[0] += ["start s", "load"]
    for name, rounds in results.items():
        column = {measure: [each[measure] for each in rounds] for measure in rounds[0]}
        middle = {measure: median(values) for measure, values in column.items()}
        rows.append([name, f"{middle['cpu']:.0f}", spread(column["cpu"])])
        rows[-1] += [ratio(results, name, beside) for beside in (FLOOR, FASTAPI, CELERY)]
        rows[-1] += [f"{middle['database']:.0f}", f"{middle['rate']:.0f}", spread(column["rate"])]
        rows[-1] += [f"{middle['acknowledged']:.0f}", f"{middle['p50']:.1f}", f"{middle['p99']:.1f}"]
        rows[-1] += [f"{middle[each]:.0f}" for each in ("memory", "database_memory", "processes", "services")]
        rows[-1] += [f"{middle['start']:.2f}", f"{middle['load']:.0%}"]
    print(aligned(rows))
    print(f"\nMedians of {ROUNDS} rounds of {SECONDS} s and the range of their middle half; {CONNECTIONS} connections")
    print(f"on {os.cpu_count()} cores. CPU, PSS and processes are those of receiver and worker; the database server is")
    print("one of the services. Updates/s with a CRM: until it has all of them. Load: the share of a core")
    print("that the load took.\n")
    targets = [["", "beside", "measured", "limit", "aim"]]
    for what, name, beside, measure, limit, aim in TARGETS:
        targets.append([what, beside, ratio(results, name, beside, measure), limit, aim])
    print(aligned(targets))


def runnable(wanted: Iterable[Contestant]) -> list[Contestant]:
    """Those that this machine can run; the others are named."""
    found = []
    for each in wanted:
        if each.missing():
            print(f"Skipped, for want of {each.missing()}: {each.name}", file=sys.stderr)
        else:
            found.append(each)
    return found


if __name__ == "__main__":
    end_on_sigterm()
    only = list(filter(None, os.environ.get("ONLY", "").split(",")))
    report(run(runnable(each for each in contestants.ALL if not only or each.name in only)))
