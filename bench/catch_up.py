"""The second half of `make bench-failure`: how an outage of the CRM ends, and what SIGKILL loses.

Updates are posted as fast as they are acknowledged, to a CRM where nobody listens until OUTAGE seconds after the last.
In the last scenario everything is killed then, the database server too, and started again. What counts is what the CRM
has when WAIT seconds have passed. PENDING and PENDING_SLOW say how many updates there are, for a CRM that answers at
once and for one that takes 200 ms; ONLY takes the beginning of the names of contestants.
"""

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bench import contestants, cost
from bench.contestants import Contestant
from bench.processes import crm, delivered, end_on_sigterm, free_port
from bench.tables import aligned

PENDING, PENDING_SLOW = int(os.environ.get("PENDING", 10_000)), int(os.environ.get("PENDING_SLOW", 2000))
OUTAGE, WAIT = float(os.environ.get("OUTAGE", 30)), float(os.environ.get("WAIT", 600))
WAIT_KILLED = min(WAIT, 180)  # a lease of 60 s and a probe after 30 s are over by then
EVERY = 0.25


@dataclass(frozen=True)
class Scenario:
    updates: int
    delay: str = "0"  # the CRM's, in seconds
    killed: bool = False

    @property
    def name(self) -> str:
        return "killed" if self.killed else f"CRM takes {float(self.delay) * 1000:g} ms"


SCENARIOS = (Scenario(PENDING_SLOW, "0.2"), Scenario(PENDING), Scenario(PENDING_SLOW, killed=True))
CONTESTANTS = (
    replace(contestants.SQLITE_CRM, name="SQLite, one process", workers=1),
    replace(contestants.POSTGRES_CRM, name="PostgreSQL, one process", workers=1),
    contestants.CELERY_CRM,
    contestants.BULLMQ_CRM,
)


def measure(contestant: Contestant, scenario: Scenario, folder: Path) -> list[str]:
    with ExitStack() as stack:
        crm_port = free_port()
        running = stack.enter_context(contestants.started(contestant, folder, crm_port))
        cost.first_200(running.port)
        with cost.loader(running, "count", scenario.updates - 1, cost.CONNECTIONS) as go:
            go()
        time.sleep(OUTAGE)
        if scenario.killed:
            running.crash()
            running.start()
        stack.enter_context(crm(folder, crm_port, scenario.delay))
        posts, updates, seconds, first = until_delivered(crm_port, scenario)
    missing = scenario.updates - updates
    cells = [contestant.name, scenario.name, f"{scenario.updates:,}"]
    cells += [f"{first:.1f}", f"{seconds:.1f}", f"{updates / seconds:.0f}"] if seconds else ["", "", ""]
    return [*cells, str(posts - updates), str(missing)]


def until_delivered(crm_port: int, scenario: Scenario) -> tuple[int, int, float, float | None]:
    """What the CRM reports once it has everything, or when time is up; then when it had the first."""
    started, first = time.monotonic(), None
    while True:
        posts, updates, seconds = delivered(crm_port)
        passed = time.monotonic() - started
        if updates and first is None:
            first = passed - seconds
        if updates >= scenario.updates or passed > (WAIT_KILLED if scenario.killed else WAIT):
            return posts, updates, seconds, first
        time.sleep(EVERY)


def main() -> None:
    only = os.environ.get("ONLY", "")
    rows = [["", "", "pending", "first after s", "all after it s", "updates/s", "posted again", "not delivered"]]
    for contestant in cost.runnable(each for each in CONTESTANTS if each.name.startswith(only)):
        for scenario in SCENARIOS:
            print(f"\r{contestant.name + ', ' + scenario.name:50}", end="", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                rows.append(measure(contestant, scenario, Path(folder)))
    print("\r" + " " * 50, end="\r", file=sys.stderr)
    print(aligned(rows))
    print(f"\nThe CRM is well {OUTAGE:g} s after the last update was acknowledged. From then: how long until its first")
    print("success, and from there until it has all that it gets. Not delivered: within")
    print(f"{WAIT:g} s, or {WAIT_KILLED:g} s where receiver, worker and database server were killed with SIGKILL.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
