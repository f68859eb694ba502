"""`make bench-growth`: what an update costs, and how long a page takes, with a million updates kept.

A tenth of the calls were in the last day. Rounds alternate with those of an empty store. Slack is on, so that a call
that fails is compared with others. KEPT, ROUNDS and UPDATES (of a round) in the environment say how much is measured.
"""

import os
import time
from contextlib import ExitStack, closing
from statistics import median

import requests

from bench import cost
from bench.fill import connect, fill
from bench.processes import Crm, end_on_sigterm
from bench.running import PASSWORD, POSTGRES, SQLITE, Contestant, Running, running
from bench.tables import table

KEPT, ROUNDS = int(os.environ.get("KEPT", 1_000_000)), int(os.environ.get("ROUNDS", 7))
UPDATES = int(os.environ.get("UPDATES", 1000))
BASE = 2000  # updates that are imported, and then copied
LOOKS = 5
LOADS = {"CPU of an update, × empty": 10, "CPU where each call fails, × empty": 1}  # of how many calls one fails
PAGES = {  # and the limit in ms
    "/": 200,
    "/?days=7": 200,
    "/?days=30": 600,
    "/live": 200,
    "/calls.json": 200,
    "/?search=%2B31600000007": 200,
    "/?search=0007": 200,
    "/?search=%2B4915112345678": 200,  # nothing is found
    "/?status=ended-with-error": 200,
    "/?error=SIP+503": 200,
    "/?line=%2B31850835037": 200,
}
SQLITE_SIZE = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
POSTGRES_SIZE = "SELECT pg_database_size(current_database())"


def measure(
    contestant: Contestant, kept: int = KEPT, base: int = BASE, rounds: int = ROUNDS, updates: int = UPDATES
) -> dict[str, str]:
    """Cells of the table by the names of its rows."""
    with ExitStack() as stack:
        slack = stack.enter_context(closing(Crm(0))).url
        empty, full = (stack.enter_context(running(contestant, SLACK_WEBHOOK_URL=slack)) for _ in range(2))
        bytes_before, began = size(full), time.monotonic()
        fill(full.environment, base, kept // base)
        cells = {"filled in s": f"{time.monotonic() - began:.0f}"}
        cells["bytes an update"] = f"{(size(full) - bytes_before) / kept:.0f}"
        cells |= {page: look(full, page) for page in PAGES}
        for name, failing in LOADS.items():
            costs = [(cpu(empty, updates, failing), cpu(full, updates, failing)) for _ in range(1 + rounds)][1:]
            cells[name] = f"{median(after / first for first, after in costs):.2f}"
            cells[name.replace("× empty", "µs")] = f"{median(after for _, after in costs):.0f}"
    return cells


def cpu(receiver: Running, updates: int, failing: int) -> float:
    """Microseconds an update."""
    before, _ = receiver.cpu()
    cost.post(receiver, updates, failing=failing)
    cost.settle(None, 0)
    return 1e6 * (receiver.cpu()[0] - before) / updates


def look(receiver: Running, page: str) -> str:
    """How many ms a page takes, the median and the slowest, which is often the first."""
    times = []
    for _ in range(LOOKS):
        answer = requests.get(receiver.url + page, auth=("", PASSWORD), timeout=60)
        answer.raise_for_status()
        times.append(1000 * answer.elapsed.total_seconds())
    return f"{median(times):.0f} ({max(times):.0f})"


def size(receiver: Running) -> int:
    """Bytes of the database, after what it does by itself before long."""
    clean_up, sql = ("VACUUM ANALYZE", POSTGRES_SIZE) if receiver.server else ("PRAGMA wal_checkpoint", SQLITE_SIZE)
    with closing(connect(receiver.environment)) as db:
        db.execute(clean_up)
        return int(db.execute(sql).fetchone()[0])


def main() -> None:
    columns = {one.name: measure(one) for one in (SQLITE, POSTGRES)}
    limits = dict.fromkeys(LOADS, "1.10") | {page: str(limit) for page, limit in PAGES.items()}
    names = next(iter(columns.values()))
    rows = [[name, *(cells[name] for cells in columns.values()), limits.get(name, "")] for name in names]
    print(table([["", *columns, "at most"], *rows]))
    print(f"\n{KEPT:,} updates kept. CPU: medians of {ROUNDS} rounds of {UPDATES} updates. Pages: ms, the median of")
    print(f"{LOOKS} looks and the slowest, which is often the first.")


if __name__ == "__main__":
    end_on_sigterm()
    main()
