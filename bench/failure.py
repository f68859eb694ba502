"""`make bench-failure`: what becomes of updates while a CRM or the store fails.

RATE updates a second are posted for SECONDS, whatever was answered; what fails does so for the time that a scenario
says. Then everything is well again, and the time is taken until nothing is pending any more. The limits are those of
production. ONLY takes the beginning of the names of scenarios.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import cost
from bench.processes import Process, crm, end_on_sigterm, free_port, gunicorn, receiver_environment, running, valkey
from bench.tables import aligned, percentile

RATE, SECONDS = int(os.environ.get("RATE", 40)), float(os.environ.get("SECONDS", 30))
LONGEST_DRAIN = float(os.environ.get("DRAIN", 180))  # seconds
FAILS_AT = SECONDS / 6


@dataclass(frozen=True)
class Scenario:
    name: str
    valkey: bool = False
    delay: str | None = None  # the CRM's: None: there is none, "refuses": nobody listens
    heals: bool = False  # a CRM without delay follows when the load is over
    break_store: Callable[[Process], None] | None = None
    mend_store: Callable[[Process], None] | None = None
    mend_after: float = SECONDS / 3


def kill(store: Process) -> None:
    store.kill(signal.SIGKILL)
    store.popen.wait()


def restart(store: Process) -> None:
    store.stop()
    store.start()


SCENARIOS = (
    Scenario("SQLite, no CRM"),
    Scenario("SQLite, CRM well", delay="0"),
    Scenario("SQLite, CRM answers in 100 ms", delay="0.1"),
    Scenario("SQLite, CRM answers in 2.9 s", delay="2.9"),
    Scenario("SQLite, CRM refuses", delay="refuses", heals=True),
    Scenario("SQLite, CRM hangs", delay="never", heals=True),
    Scenario("Valkey, no CRM", valkey=True),
    Scenario("Valkey, CRM well", valkey=True, delay="0"),
    Scenario("Valkey, CRM answers in 2.9 s", valkey=True, delay="2.9"),
    Scenario("Valkey, CRM hangs", valkey=True, delay="never", heals=True),
    Scenario("Valkey killed", valkey=True, break_store=kill, mend_store=Process.start),
    Scenario(
        "Valkey stopped",
        valkey=True,
        break_store=lambda store: store.kill(signal.SIGSTOP),
        mend_store=lambda store: store.kill(signal.SIGCONT),
    ),
    Scenario("Valkey restarted", valkey=True, break_store=restart),
)


def measure(scenario: Scenario, folder: Path) -> dict[str, float | str | list]:
    with ExitStack() as stack, ExitStack() as services:
        environment, store, crm_port = receiver_environment(folder), None, free_port()
        if scenario.valkey:
            store, environment["REDIS_URL"] = stack.enter_context(valkey(folder))
        if scenario.delay:
            environment["CRM_WEBHOOK_URL"] = f"http://127.0.0.1:{crm_port}/"
            if scenario.delay != "refuses":
                services.enter_context(crm(folder, crm_port, scenario.delay))
        port = free_port()
        stack.enter_context(running(*gunicorn("app:app", port), log=folder / "server.log", **environment))
        cost.first_200(port)
        found = {"results": under_load(scenario, port, store), "pending": pending(port)}
        if scenario.heals:
            services.close()
            stack.enter_context(crm(folder, crm_port))
        found["drained"] = until_nothing_is_pending(port)
        return found


def under_load(scenario: Scenario, port: int, store: Process | None) -> list[tuple[float, float, str]]:
    """What came of each update: when it was due, how long it took, what was answered."""
    command = [sys.executable, "-m", "bench.load", "open", *map(str, (port, SECONDS, RATE))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as loader:
        try:
            loader.stdout.readline()
            loader.stdin.write("go\n")
            loader.stdin.flush()
            if scenario.break_store:
                time.sleep(FAILS_AT)
                scenario.break_store(store)
            if scenario.mend_store:
                time.sleep(scenario.mend_after)
                scenario.mend_store(store)
            return json.loads(loader.stdout.readline())["results"]
        finally:
            loader.kill()


def pending(port: int) -> int | None:
    """How many rows are pending and updates spooled, as the receiver tells; None while it cannot."""
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
    print(f"\n{RATE} updates/s for {SECONDS:g} s, 2 workers. A CRM fails all that time and is well after it; the store")
    print(f"from {FAILS_AT:g} s on, for {SECONDS / 3:g} s. Pending: when the last was answered. Then: how long until")
    print("nothing is pending. p99, 2nd half: of what was due in the load's second half.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
