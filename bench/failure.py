"""`make bench-failure`: what becomes of updates while a CRM or the database server fails.

RATE updates a second are posted for SECONDS, whatever was answered; what fails does so for the time that a scenario
says. Then everything is well again, and the time is taken until nothing is pending any more. The limits are those of
production. ONLY takes the beginning of the names of scenarios.
"""

import json
import os
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import contestants, cost
from bench.contestants import Contestant, Started
from bench.processes import Process, crm, end_on_sigterm, free_port
from bench.tables import aligned, percentile

RATE, SECONDS = int(os.environ.get("RATE", 40)), float(os.environ.get("SECONDS", 30))
LONGEST_DRAIN = float(os.environ.get("DRAIN", 180))  # seconds
FAILS_AT = SECONDS / 6


@dataclass(frozen=True)
class Scenario:
    name: str
    receiver: Contestant = contestants.SQLITE
    delay: str | None = None  # the CRM's: None: there is none, "refuses": nobody listens
    heals: bool = False  # a CRM without delay follows when the load is over
    break_server: Callable[[Process], None] | None = None
    mend_server: Callable[[Process], None] | None = None
    mend_after: float = SECONDS / 3


def restart(server: Process) -> None:
    server.stop()
    server.start()


POSTGRES = contestants.POSTGRES
SCENARIOS = (
    Scenario("SQLite, no CRM"),
    Scenario("SQLite, CRM well", delay="0"),
    Scenario("SQLite, CRM answers in 100 ms", delay="0.1"),
    Scenario("SQLite, CRM answers in 2.9 s", delay="2.9"),
    Scenario("SQLite, CRM refuses", delay="refuses", heals=True),
    Scenario("SQLite, CRM hangs", delay="never", heals=True),
    Scenario("PostgreSQL, no CRM", receiver=POSTGRES),
    Scenario("PostgreSQL, CRM well", receiver=POSTGRES, delay="0"),
    Scenario("PostgreSQL, CRM answers in 2.9 s", receiver=POSTGRES, delay="2.9"),
    Scenario("PostgreSQL, CRM hangs", receiver=POSTGRES, delay="never", heals=True),
    Scenario("PostgreSQL killed", receiver=POSTGRES, break_server=Process.crash, mend_server=Process.start),
    Scenario(
        "PostgreSQL stopped",
        receiver=POSTGRES,
        break_server=lambda server: server.kill(signal.SIGSTOP),
        mend_server=lambda server: server.kill(signal.SIGCONT),
    ),
    Scenario("PostgreSQL restarted", receiver=POSTGRES, break_server=restart),
)


def measure(scenario: Scenario, folder: Path) -> dict[str, float | str | list]:
    with ExitStack() as stack, ExitStack() as services:
        crm_port = free_port() if scenario.delay else None
        running = stack.enter_context(contestants.started(scenario.receiver, folder, crm_port))
        if scenario.delay not in (None, "refuses"):
            services.enter_context(crm(folder, crm_port, scenario.delay))
        cost.first_200(running.port)
        found = {"results": under_load(scenario, running), "pending": pending(running.port)}
        if scenario.heals:
            services.close()
            stack.enter_context(crm(folder, crm_port))
        found["drained"] = until_nothing_is_pending(running.port)
        return found


def under_load(scenario: Scenario, running: Started) -> list[tuple[float, float, str]]:
    """What came of each update: when it was due, how long it took, what was answered."""
    with cost.loader(running, "open", SECONDS, RATE) as go, ThreadPoolExecutor(1) as pool:
        found = pool.submit(go)
        if scenario.break_server:
            time.sleep(FAILS_AT)
            scenario.break_server(running.database)
        if scenario.mend_server:
            time.sleep(scenario.mend_after)
            scenario.mend_server(running.database)
        return found.result()["results"]


def pending(port: int) -> int | None:
    """How many jobs are pending and updates spooled, as the receiver tells; None while it cannot."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10) as answer:
            health = json.load(answer)
    except OSError:
        return None
    return health["pending"] + (health.get("spooled") or 0)


def until_nothing_is_pending(port: int) -> float | None:
    """Seconds, or None where LONGEST_DRAIN is not enough."""
    started = time.monotonic()
    while time.monotonic() - started < LONGEST_DRAIN:
        if pending(port) == 0:
            return time.monotonic() - started
        time.sleep(0.25)
    return None


def row(scenario: Scenario, found: dict) -> list[str]:
    results = found["results"]
    taken = [seconds for _, seconds, result in results if result == "OK"] or [float("nan")]
    later = [seconds for due, seconds, result in results if result == "OK" and due > SECONDS / 2] or [float("nan")]
    others = sorted({result for *_, result in results if result != "OK"})
    cells = [f"{sum(result == 'OK' for *_, result in results) / len(results):.2%}", ", ".join(others)]
    cells += [f"{1000 * percentile(taken, share):.0f}" for share in (0.5, 0.99)]
    cells += [f"{1000 * max(seconds for _, seconds, _ in results):.0f}", f"{1000 * percentile(later, 0.99):.0f}"]
    drained = f"over {LONGEST_DRAIN:.0f}" if found["drained"] is None else f"{found['drained']:.1f}"
    return [scenario.name, *cells, "unknown" if found["pending"] is None else str(found["pending"]), drained]


def main() -> None:
    only = os.environ.get("ONLY", "")
    head = [
        "",
        "acknowledged",
        "else",
        "p50 ms",
        "p99 ms",
        "slowest ms",
        "p99, 2nd half",
        "pending",
        "nothing pending s",
    ]
    rows = [head]
    for scenario in SCENARIOS:
        if scenario.name.startswith(only):
            print(f"\r{scenario.name:40}", end="", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                rows.append(row(scenario, measure(scenario, Path(folder))))
    print("\r" + " " * 40, end="\r", file=sys.stderr)
    print(aligned(rows))
    print(f"\n{RATE} updates/s for {SECONDS:g} s, 2 workers. A CRM fails all that time and is well after it; a")
    print(f"server from {FAILS_AT:g} s on, for {SECONDS / 3:g} s. Pending: when the last was answered. Then: how long")
    print("until nothing is pending. p99, 2nd half: of what was due in the load's second half.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
