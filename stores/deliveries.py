"""Deliveries: what became of updates in the handlers that they were given to."""

import json
from collections import Counter
from typing import NamedTuple

from stores.database import Database

AT_ONCE = 5.0  # seconds from an update's receipt; what is done after that is done later


class Deliveries(NamedTuple):
    """How many updates a handler did at once, did later and failed at, and the most seconds that one had to wait; None
    where all were done by the request that brought them."""

    at_once: int = 0
    later: int = 0
    failed: int = 0
    longest: float | None = None


def since(db: Database, moment: float) -> dict[str, Deliveries]:
    """What became, by handler, of the updates received at `moment` or later whose handlers are known."""
    received, values = "received_at >= :since AND handlers IS NOT NULL", {"since": moment, "at_once": AT_ONCE}
    totals: Counter[str] = Counter()
    for names, number in db.query(f"SELECT handlers, count(*) FROM updates WHERE {received} GROUP BY handlers", values):
        totals.update(dict.fromkeys(json.loads(names), number))
    rows = db.query(
        "SELECT handler, count(CASE WHEN state <> 'done' OR done_at - received_at > :at_once THEN 1 END),"
        " count(CASE WHEN state = 'done' AND done_at - received_at > :at_once THEN 1 END),"
        " count(CASE WHEN state = 'failed' THEN 1 END), max(CASE WHEN state = 'done' THEN done_at - received_at END)"
        f" FROM jobs JOIN updates ON id = update_id WHERE {received} GROUP BY handler",
        values,
    )
    answer = {handler: Deliveries(number) for handler, number in totals.items()}
    for handler, not_at_once, *others in rows:
        answer[handler] = Deliveries(totals[handler] - not_at_once, *others)
    return answer
