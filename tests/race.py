"""Many threads in several processes that do one thing at once.

Run as a program it is one of the processes: for each verb on stdin, its threads do that, and it prints how many won.
"""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from threading import Barrier

import stores
from schemas.status_update import Call, StatusUpdate
from stores import jobs, locks, updates
from stores.records import Job

ROOT = Path(__file__).parent.parent
PROCESSES, THREADS = 4, 8
NOW = 1_800_001_800.0


@contextmanager
def racing(settings):
    """Start the processes. Gives race(verb): how many threads of all won when all did the verb at once."""
    command = [sys.executable, "tests/race.py", json.dumps(settings)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [
        subprocess.Popen([*command, str(number)], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, **pipes)
        for number in range(PROCESSES)
    ]

    def race(verb):
        for each in started:
            print(verb, file=each.stdin, flush=True)
        return sum(int(each.stdout.readline()) for each in started)

    try:
        assert [each.stdout.readline() for each in started] == ["ready\n"] * PROCESSES
        yield race
    finally:
        for each in started:
            each.communicate()


def update(status):
    moment = datetime.fromtimestamp(NOW, UTC)
    return StatusUpdate(Call("call-1", status), moment, moment)


def main(settings, process):
    store, numbers = stores.create(settings | {"CLOCK": lambda: NOW}), count(process * THREADS)
    verbs = {
        "record": lambda: updates.keep(store, update("in-progress"), [Job("log_event", "leased", NOW + 60)]),
        "record a status each": lambda: updates.keep(
            store, update(f"status-{next(numbers)}"), [Job("log_event", "pending", NOW)]
        ),
        "lease": lambda: jobs.lease_due(store, "log_event", NOW + 60, NOW + 120, 1),
        "lock": lambda: locks.acquire(store, "prune", 3600),
    }
    start = Barrier(THREADS)

    def run(verb):
        start.wait()
        return bool(verbs[verb]())

    with ThreadPoolExecutor(THREADS) as pool:
        print("ready", flush=True)
        for line in sys.stdin:
            print(sum(pool.map(run, [line.strip()] * THREADS)), flush=True)
    store.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
