"""One process of a race: for each line on stdin, a verb, many threads do it at once. Prints how many of them won."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from threading import Barrier

import stores
from schemas.status_update import Call, StatusUpdate

THREADS = 8
NOW = 1_800_001_800.0


def main(settings):
    store, moment = stores.create(settings), datetime.fromtimestamp(NOW, UTC)
    update = StatusUpdate(Call("call-1", "in-progress"), moment, moment)
    verbs = {
        "record": lambda: store.record(update, ["log_event"], NOW + 60, now=NOW),
        "take": lambda: store.take("log_event", NOW + 60, NOW + 120) is not None,
    }
    start = Barrier(THREADS)

    def race(verb):
        start.wait()
        return verbs[verb]()

    with ThreadPoolExecutor(THREADS) as pool:
        print("ready", flush=True)
        for line in sys.stdin:
            print(sum(pool.map(race, [line.strip()] * THREADS)), flush=True)


main(json.loads(sys.argv[1]))
