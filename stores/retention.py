"""What is not kept any more: what is older than the retention, and one person's calls."""

import json
import re
from collections.abc import Collection, Iterable

from stores import updates
from stores.database import Database, Execute

_IDS = 500  # in one statement


def prune(db: Database, before: float, limit: int, active_handlers: Collection[str] = ()) -> tuple[int, int]:
    """Atomically remove at most `limit` updates received before `before` on which none of `active_handlers` has
    anything pending, and at most `limit` calls left without any. Returns how many updates and calls; (0, 0) when
    nothing is left to prune. Refusals of earlier hours go too."""
    names = {f"handler{number}": name for number, name in enumerate(active_handlers)}
    values = {"before": before, "limit": limit, **names}
    theirs = f"handler IN ({', '.join([*(f':{name}' for name in names), 'NULL'])})"
    with db.transaction(patient=True) as execute:
        pruned = execute(
            "DELETE FROM updates WHERE id IN (SELECT id FROM updates AS u WHERE received_at < :before AND NOT EXISTS"
            f" (SELECT 1 FROM jobs WHERE update_id = u.id AND due_at IS NOT NULL AND {theirs})"
            " ORDER BY received_at LIMIT :limit)"
            " RETURNING 1",
            values,
        )
        calls = execute(
            "DELETE FROM calls WHERE id IN (SELECT id FROM calls AS c WHERE received_at < :before AND NOT EXISTS"
            " (SELECT 1 FROM updates WHERE call_id = c.id) ORDER BY received_at LIMIT :limit) RETURNING 1",
            values,
        )
        execute("DELETE FROM refusals WHERE hour <= :before - 3600", values)
        execute("DELETE FROM locks WHERE until < :before", values)
    return len(pruned), len(calls)


def forget(db: Database, number: str) -> dict[str, int]:
    """Remove every call of the customer with this number, and every call whose id contains it (if it ends in six
    digits, for fewer are in anybody's), with updates and jobs. Returns how many `calls`, `updates` and `jobs`.

    Updates are looked through first, which holds nothing up; what is found is removed atomically.
    """
    in_id = re.compile(rf"{re.escape(number)}(?![0-9])") if re.search(r"[0-9]{6}\Z", number) else re.compile(r"(?!)")
    ids, escaped = set(), json.dumps(number)[1:-1]  # as a message has it
    for stored in updates.since(db):
        if in_id.search(stored.call_id) or escaped in stored.message and _customer(stored.message) == number:
            ids.add(stored.call_id)
    with db.transaction(patient=True) as execute:
        # To LIKE, some characters are not themselves, nor the same to both databases.
        has = "customer = :number OR replace(id, :number, '') <> id"
        found = execute(f"SELECT id, customer FROM calls WHERE {has}", {"number": number})
        ids |= {id for id, customer in found if customer == number or in_id.search(id)}
        return remove(execute, ids)


def remove(execute: Execute, call_ids: Iterable[str]) -> dict[str, int]:
    """Remove calls with their updates and jobs. Returns how many of each."""
    removed, ids = {"calls": 0, "updates": 0, "jobs": 0}, list(call_ids)
    for start in range(0, len(ids), _IDS):
        values = {f"id{number}": id for number, id in enumerate(ids[start : start + _IDS])}
        among = f"IN ({', '.join(f':{name}' for name in values)})"
        theirs = f"(SELECT id FROM updates WHERE call_id {among})"
        removed["jobs"] += len(execute(f"DELETE FROM jobs WHERE update_id IN {theirs} RETURNING 1", values))
        removed["updates"] += len(execute(f"DELETE FROM updates WHERE call_id {among} RETURNING 1", values))
        removed["calls"] += len(execute(f"DELETE FROM calls WHERE id {among} RETURNING 1", values))
    return removed


def _customer(message: str) -> str | None:
    return json.loads(message)["message"]["customer"]["number"]
