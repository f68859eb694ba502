"""`make bench`: what an update costs, beside an empty Flask route and what a user would pick in the receiver's place.

Each contestant is started anew for each round, and rounds alternate. What counts is the CPU of receiver and worker,
until all is settled and the CRM has every update. ROUNDS, UPDATES and ONLY (the beginning of names) in the environment
say how much is measured.
"""

import os
import sys
import time
from contextlib import closing, nullcontext
from statistics import median

from bench import load
from bench import running as who
from bench.processes import Crm, end_on_sigterm
from bench.running import Contestant, Running, running
from bench.tables import percentile, table
from tests.loopback import wait_until

ROUNDS, UPDATES = int(os.environ.get("ROUNDS", 5)), int(os.environ.get("UPDATES", 2000))
ONLY = os.environ.get("ONLY", "")
RATE = 50  # updates/s at which the time of an answer is taken
SETTLING = 0.2  # seconds after the last answer
LONGEST_DRAIN = 60.0  # seconds
CPU, DELIVERED, P99, PROCESS, START = "CPU µs/update", "updates/s", "p99 ms", "MB, one process", "start s"
ALL = (who.FLOOR, who.SQLITE, who.POSTGRES, who.SQLITE_CRM, who.POSTGRES_CRM, who.FASTAPI, who.CELERY, who.BULLMQ)
PLAIN, WITH_CRM = (who.SQLITE, who.POSTGRES), (who.SQLITE_CRM, who.POSTGRES_CRM)
TARGETS = (  # what, its column, who on SQLite and on PostgreSQL, beside whom, the limit, the aim
    ("CPU, no outbound service, × the floor", CPU, PLAIN, who.FLOOR, "≤ 3.5", "3.0"),
    ("CPU with a CRM, × Celery", CPU, WITH_CRM, who.CELERY, "≤ 0.6", "0.5"),
    ("CPU with a CRM, × FastAPI", CPU, WITH_CRM, who.FASTAPI, "≤ 1.0", "0.9"),
    ("updates/s delivered to the CRM, × Celery", DELIVERED, WITH_CRM, who.CELERY, "≥ 1.5", "2"),
    (f"p99 at {RATE} updates/s, × the floor", P99, PLAIN, who.FLOOR, "≤ 4", "3"),
    (f"p99 at {RATE} updates/s with a CRM, × the floor", P99, WITH_CRM, who.FLOOR, "≤ 4", "3"),
    ("memory of one process, × the floor", PROCESS, PLAIN, who.FLOOR, "≤ 1.3", "1.2"),
    ("cold start to the first 200, × the floor", START, PLAIN, who.FLOOR, "≤ 1.5", "1.2"),
)

Round = dict[str, float]  # by column
Results = dict[Contestant, list[Round]]


def measure(contestant: Contestant, updates: int = UPDATES, steady: int = 4 * RATE) -> Round:
    """One round: start it, warm it up, post so many updates as fast as it takes them, then `steady` at RATE."""
    with closing(Crm(0)) if contestant.crm else nullcontext() as crm, running(contestant, crm) as receiver:
        start = time.monotonic() - receiver.started
        post(receiver, updates // 4)
        settle(crm, posted := 1 + updates // 4)
        before, answers = receiver.cpu(), post(receiver, updates)
        end = settle(crm, posted + updates) or max(answer.sent + answer.seconds for answer in answers)
        cpu, server_cpu = (1e6 * (after - first) / updates for first, after in zip(before, receiver.cpu(), strict=True))
        memory = receiver.memory()
        times = [1000 * answer.seconds for answer in post(receiver, steady, RATE)]
        settle(crm, posted + updates + steady)
        assert crm is None or not crm.report()["again"], crm.report()
        wait_until(lambda: receiver.pending() == 0)
    columns = {CPU: cpu, "database µs": server_cpu, DELIVERED: updates / (end - answers[0].sent)}
    columns |= {"p50 ms": percentile(times, 50), P99: percentile(times, 99), START: start}
    return columns | {PROCESS: max(memory), "MB, all": sum(memory), "processes": len(memory)}


def post(receiver: Running, updates: int, rate: float = 0, failing: int = 10) -> list[load.Answer]:
    """Raise AssertionError where an update was not acknowledged."""
    answers = load.post(receiver.port, updates, rate, failing)
    assert {answer.status for answer in answers} == {200}, answers
    return answers


def settle(crm: Crm | None, updates: int) -> float:
    """Wait until all is settled and the CRM has so many updates, and return when it got the last; 0 without a CRM."""
    report = crm.wait_for(updates, LONGEST_DRAIN) if crm else {}
    assert report.get("updates", updates) == updates, f"{updates} were posted, the CRM has {report}"
    time.sleep(SETTLING)
    return report.get("last", 0.0)


def ratio(rounds: list[Round], beside: list[Round], column: str) -> str:
    """The median of the rounds' ratios: what slows the machine for a while slows both."""
    pairs = zip(rounds, beside, strict=True)
    return f"{median(one[column] / other[column] for one, other in pairs):.2f}" if rounds and beside else ""


def report(results: Results) -> str:
    rows = [["", *next(iter(results.values()))[0]]]
    for contestant, rounds in results.items():
        middle = (median(values) for values in zip(*(one.values() for one in rounds), strict=True))
        rows.append([contestant.name, *(f"{value:,.0f}" if value >= 20 else f"{value:.2g}" for value in middle)])
    targets = [
        [text, *(ratio(results.get(one, []), results.get(beside, []), column) for one in pair), *limits]
        for text, column, pair, beside, *limits in TARGETS
    ]
    return f"{table(rows)}\n\n{table([['', 'SQLite', 'PostgreSQL', 'limit', 'aim'], *targets])}"


def main() -> None:
    results: Results = {one: [] for one in who.available(ALL) if one.name.startswith(ONLY)}
    for number in range(ROUNDS):
        for contestant in list(results) if number % 2 else reversed(results):
            print(f"round {number + 1} of {ROUNDS}: {contestant.name}", file=sys.stderr)
            results[contestant].append(measure(contestant))
    print(report(results))
    print(f"\nMedians of {ROUNDS} rounds of {UPDATES} updates, {load.CONNECTIONS} at a time; p50 and p99 of answers at")
    print(f"{RATE} updates/s in an open loop. All but one column are without the database server.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
