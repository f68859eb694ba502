"""`make bench-failure`: what becomes of updates while a CRM is away, hangs or is slow, and what SIGKILL loses.

PENDING and PENDING_SLOW in the environment say how many updates wait for a CRM that is back and answers at once, or
takes 200 ms; ONLY takes the beginning of names of scenarios. Deadlines and leases are those of production.
"""

import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace

from bench import load
from bench import running as who
from bench.load import Answer
from bench.processes import Crm, end_on_sigterm
from bench.running import Contestant, running
from bench.tables import percentile, table
from tests.loopback import wait_until

PENDING, PENDING_SLOW = int(os.environ.get("PENDING", 10_000)), int(os.environ.get("PENDING_SLOW", 2000))
ONLY = os.environ.get("ONLY", "")
HEAD = "||updates|answered 200|p50 ms|p99 ms|p99, 2nd half|slowest ms|first s|last s|updates/s|again|pending|missing"


@dataclass(frozen=True)
class Scenario:
    """`rate` is in updates/s; at 0, each connection posts its next when its last is answered. `during` and `after` are
    how many seconds the CRM takes while updates are posted, and then; None: nobody listens. `killed`: everything is,
    when the CRM has a tenth. `patience` is how long it may take until the CRM has all."""

    name: str
    updates: int
    rate: float = 0
    during: float | None = None
    after: float = 0
    killed: bool = False
    patience: float = 120


WELL = Scenario("is well", 600, rate=40, during=0)
HANGS = Scenario("hangs, and then is well", 600, rate=40, during=math.inf, patience=40)
SLOW = Scenario("takes 1.5 s", 240, rate=8, during=1.5, after=1.5)
BACK_SLOW = Scenario("is back and takes 200 ms", PENDING_SLOW, after=0.2)
BACK = Scenario("is back and takes 0 ms", PENDING)
KILLED = Scenario("is back, then all are killed", 500, after=0.2, killed=True, patience=140)
OURS = [who.SQLITE_CRM, who.POSTGRES_CRM]
ALONE = [replace(one, name=f"{one.name}, one process", processes=1) for one in OURS]
GROUPS = (  # what mostly waits is measured at the same time
    [(one, WELL) for one in OURS],
    [(one, HANGS) for one in OURS],
    [(one, scenario) for scenario in (SLOW, BACK_SLOW) for one in ALONE],
    *([(one, BACK)] for one in ALONE),
    [(one, KILLED) for one in who.available([*OURS, who.FASTAPI, who.CELERY, who.BULLMQ])],
)


def measure(contestant: Contestant, scenario: Scenario) -> list[str]:
    """A row of the table."""
    with closing(Crm(0)) as crm, running(contestant, crm) as receiver:
        crm.wait_for(1, scenario.patience)  # a worker has started, too
        crm.restart(scenario.during)
        answers = load.post(receiver.port, scenario.updates, scenario.rate)
        if scenario.after != scenario.during:
            crm.restart(scenario.after)
        if scenario.killed:
            crm.wait_for(scenario.updates // 10, scenario.patience)
            receiver.crash()
            receiver.start()
        updates = scenario.updates + scenario.killed  # each start posts one
        crm.wait_for(updates, scenario.patience)
        with suppress(AssertionError):  # what is leased yet may be posted again
            wait_until(lambda: receiver.pending() == 0, scenario.patience)
        report, pending = crm.report(), receiver.pending()
    cells = [f"{report['again']:.0f}", str(pending), f"{updates - report['updates']:.0f}"]
    return [contestant.name, scenario.name, str(scenario.updates), *timed(answers, report), *cells]


def timed(answers: list[Answer], report: dict[str, float]) -> list[str]:
    """How many were acknowledged, how soon, and when the CRM had them: in seconds after the last answer."""
    times = [1000 * answer.seconds for answer in answers]
    end = max(answer.sent + answer.seconds for answer in answers)
    figures = (percentile(times, 50), percentile(times, 99), percentile(times[len(times) // 2 :], 99), max(times))
    return [
        f"{sum(answer.status == 200 for answer in answers) / len(answers):.1%}",
        *(f"{figure:.0f}" for figure in figures),
        *(f"{report[name] - end:.1f}" for name in ("first", "last")),
        f"{report['updates'] / max(report['last'] - report['first'], 0.001):.0f}",
    ]


def main() -> None:
    rows = [HEAD.split("|")]
    for group in GROUPS:
        pairs = [(one, scenario) for one, scenario in group if scenario.name.startswith(ONLY)]
        with ThreadPoolExecutor(len(group)) as pool:
            for row in pool.map(lambda pair: measure(*pair), pairs):
                rows.append(row)
                print(", ".join(row), file=sys.stderr)
    print(table(rows))
    print("\nFirst, last: when the CRM got its first and its last update, in seconds after the provider got its last")
    print("answer. Again: posts of what the CRM had been posted before. Missing: what it did not get in time.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
