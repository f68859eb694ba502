"""`make bench`: what an update costs, beside an empty Flask route and a FastAPI receiver that promises the same.

Every contestant has two workers and is started anew for each round; rounds alternate. ROUNDS, SECONDS and CONNECTIONS
in the environment say how many and how much; ONLY takes the names of some contestants, separated by commas.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import load
from bench.processes import (
    ROOT,
    Process,
    crm,
    end_on_sigterm,
    free_port,
    gunicorn,
    postgres,
    receiver_environment,
    running,
    valkey,
)
from bench.tables import aligned, spread

ROUNDS, SECONDS = int(os.environ.get("ROUNDS", 7)), float(os.environ.get("SECONDS", 2.5))
CONNECTIONS, WARMUP = int(os.environ.get("CONNECTIONS", 16)), 200
EMPTY = ("--config", "bench/contestants/gunicorn_empty.py")
UVICORN = (sys.executable, "-m", "uvicorn", "--workers", "2", "--no-access-log", "--log-level", "warning")
FLOOR, FASTAPI = "empty Flask route", "FastAPI on PostgreSQL + CRM"


@dataclass(frozen=True)
class Contestant:
    name: str
    app: str
    store: str = ""  # "DATABASE_URL" or "REDIS_URL", where it needs a server
    crm: bool = False

    def command(self, port: int) -> list[str]:
        if "fastapi" in self.app:
            return [*UVICORN, "--port", str(port), self.app]
        return gunicorn(self.app, port, *([] if self.app == "app:app" else EMPTY))


CONTESTANTS = (
    Contestant(FLOOR, "bench.contestants.floor:app"),
    Contestant("SQLite", "app:app"),
    Contestant("SQLite + CRM", "app:app", crm=True),
    Contestant("PostgreSQL", "app:app", "DATABASE_URL"),
    Contestant("PostgreSQL + CRM", "app:app", "DATABASE_URL", crm=True),
    Contestant("FastAPI on PostgreSQL", "bench.contestants.fastapi_receiver:app", "DATABASE_URL"),
    Contestant(FASTAPI, "bench.contestants.fastapi_receiver:app", "DATABASE_URL", crm=True),
    Contestant("textbook Flask on Valkey", "bench.contestants.textbook:app", "REDIS_URL"),
)
TARGETS = (  # what, contestant, beside, the measure, at most, aim; from the design
    ("on SQLite, no outbound service", "SQLite", FLOOR, "cpu", 3.0, 2.3),
    ("on PostgreSQL, no outbound service", "PostgreSQL", FLOOR, "cpu", 3.0, 2.3),
    ("on SQLite, with a CRM", "SQLite + CRM", FASTAPI, "cpu", 0.9, 0.7),
    ("on PostgreSQL, with a CRM", "PostgreSQL + CRM", FASTAPI, "cpu", 0.9, 0.7),
    ("cold start to the first 200, SQLite", "SQLite", FLOOR, "start", 2.0, 1.5),
    ("cold start to the first 200, PostgreSQL", "PostgreSQL", FLOOR, "start", 2.0, 1.5),
)


def measure(contestant: Contestant, folder: Path) -> dict[str, float]:
    """One round: start it, wait for the first 200, warm it up, load it, and check that all was done."""
    with ExitStack() as stack:
        environment, store, crm_port = receiver_environment(folder), None, None
        if contestant.store:
            start = {"DATABASE_URL": postgres, "REDIS_URL": valkey}[contestant.store]
            store, environment[contestant.store] = stack.enter_context(start(folder))
        if contestant.crm:
            _, crm_port = stack.enter_context(crm(folder))
            environment["CRM_WEBHOOK_URL"] = f"http://127.0.0.1:{crm_port}/"
        port, started = free_port(), time.perf_counter()
        server = stack.enter_context(running(*contestant.command(port), log=folder / "server.log", **environment))
        first_200(port)
        start = time.perf_counter() - started
        found = under_load(port, server, store)
        check(contestant, port, crm_port, found["updates"])
        return {**found, "memory": server.memory(), "start": start}


def under_load(port: int, server: Process, store: Process | None = None) -> dict[str, float]:
    """What the server, warmed up, makes of the load: CPU in µs an update, times in ms."""
    command = [sys.executable, "-m", "bench.load", "closed", *map(str, (port, SECONDS, CONNECTIONS, WARMUP))]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loader:
        try:
            if loader.stdout.readline() != "ready\n":
                raise RuntimeError(server.log.read_text()[-2000:])
            cpu, store_cpu = server.cpu(), store.cpu() if store else 0
            loader.stdin.write("go\n")
            loader.stdin.flush()
            found = json.loads(loader.stdout.readline())
            cpu, store_cpu = server.cpu() - cpu, store.cpu() - store_cpu if store else 0
        finally:
            loader.kill()
    return {
        "updates": found["updates"],
        "cpu": 1e6 * cpu / found["updates"],
        "store": 1e6 * store_cpu / found["updates"],
        "rate": found["updates"] / found["seconds"],
        "p50": 1000 * found["p50"],
        "p99": 1000 * found["p99"],
        "load": found["cpu_share"],
    }


def first_200(port: int) -> None:
    """Post an update every 5 ms until one is acknowledged."""
    end = time.monotonic() + 20
    while True:
        try:
            connection = load.Connection(port)
            connection.send(load.requests(0)[0], 0)
            while (answer := connection.answered()) is None:
                pass
            connection.socket.close()
            if answer == "OK":
                return
        except ConnectionError:
            pass
        if time.monotonic() > end:
            raise TimeoutError("the server does not start")
        time.sleep(0.005)


def check(contestant: Contestant, port: int, crm_port: int | None, updates: int) -> None:
    """Raise AssertionError unless what was acknowledged was done: nothing pending, and all of it posted to the CRM."""
    if contestant.app == "app:app":
        health = get(port, "/healthz")
        assert (health["pending"], health["failed"]) == (0, 0), health
        assert health["store"] == ("postgresql" if contestant.store else "sqlite"), health
    if crm_port:
        posts, keys = map(int, urllib.request.urlopen(f"http://127.0.0.1:{crm_port}/").read().split())
        assert posts == keys >= updates, f"{updates} updates, {posts} posts of {keys}"


def get(port: int, path: str) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return json.load(answer)


def run(contestants: list[Contestant]) -> dict[str, list[dict[str, float]]]:
    results = {each.name: [] for each in contestants}
    for number in range(ROUNDS):
        for each in contestants if number % 2 == 0 else reversed(contestants):
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
    head = ["", "CPU µs/update", "", "× floor", "× FastAPI CRM", "store µs", "updates/s", "", "p50 ms", "p99 ms"]
    rows = [[*head, "PSS MB", "start s", "× floor", "load's CPU"]]
    for name, rounds in results.items():
        column = {measure: [each[measure] for each in rounds] for measure in rounds[0]}
        middle = {measure: median(values) for measure, values in column.items()}
        rows.append([name, f"{middle['cpu']:.0f}", spread(column["cpu"]), ratio(results, name, FLOOR)])
        rows[-1] += [ratio(results, name, FASTAPI), f"{middle['store']:.0f}" if middle["store"] else "", ""]
        rows[-1][-1:] = [f"{middle['rate']:.0f}", spread(column["rate"])]
        rows[-1] += [f"{middle['p50']:.1f}", f"{middle['p99']:.1f}", f"{middle['memory']:.0f}"]
        rows[-1] += [f"{middle['start']:.2f}", ratio(results, name, FLOOR, "start"), f"{middle['load']:.0%}"]
    print(aligned(rows))
    print(f"\nMedians of {ROUNDS} rounds of {SECONDS} s and the range of their middle half; 2 workers each,")
    print(f"{CONNECTIONS} connections on {os.cpu_count()} cores. PSS and CPU are those of all web processes.\n")
    targets = [["", "beside", "measured", "at most", "aim"]]
    for what, name, beside, measure, most, aim in TARGETS:
        targets.append([what, beside, ratio(results, name, beside, measure), f"{most:.1f}", f"{aim:.1f}"])
    print(aligned(targets))


if __name__ == "__main__":
    end_on_sigterm()
    only = list(filter(None, os.environ.get("ONLY", "").split(",")))
    report(run([each for each in CONTESTANTS if not only or each.name in only]))
