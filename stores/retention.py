"""What is not kept any more: what is older than the retention, and one person's calls."""

import json
import re
from collections.abc import Collection
from itertools import chain

from stores import numbers, updates
from stores.database import Database, marks


def prune(db: Database, before: float, limit: int, active_handlers: Collection[str] = ()) -> tuple[int, int]:
    """Atomically remove at most `limit` updates received before `before` on which none of `active_handlers` has
    anything pending, and at most `limit` calls left without any. Returns how many updates and calls; (0, 0) when
    nothing is left to prune. Refusals of earlier hours go too."""
    names, values = marks(active_handlers)
    values |= {"before": before, "limit": limit}
    with db.transaction() as execute:
        update_rows = execute(
            "DELETE FROM updates WHERE id IN (SELECT id FROM updates AS u WHERE received_at < :before AND NOT EXISTS"
            f" (SELECT 1 FROM jobs WHERE update_id = u.id AND due_at IS NOT NULL AND handler IN {names})"
            " ORDER BY received_at LIMIT :limit) RETURNING 1",
            values,
        )
        call_rows = execute(
            "DELETE FROM calls WHERE id IN (SELECT id FROM calls AS c WHERE received_at < :before AND NOT EXISTS"
            " (SELECT 1 FROM updates WHERE call_id = c.id) ORDER BY received_at LIMIT :limit) RETURNING 1",
            values,
        )
        execute("DELETE FROM refusals WHERE hour <= :before - 3600", values)
        execute("DELETE FROM locks WHERE until < :before", values)
    return len(update_rows), len(call_rows)


def calls_of(db: Database, who: str) -> set[str]:
    """The ids of a person's calls: by the customer's number (all of its digits, or the last nine or more, in any form),
    a SIP user, a customer or a call's id as written.

    Every update is read, as a customer may be named in only one of a call's; that holds nothing up.
    """
    number = numbers.digits(who) if numbers.is_number(who) else ""
    if "@" in who and len(number) < numbers.SHARED:
        number = ""  # an extension says who it is only together with its host
    of_calls = db.query("SELECT id, customer FROM calls")  # as the update that named a customer may be pruned
    messages = ((stored.call_id, json.loads(stored.message)["message"]) for stored in updates.since(db))
    of_updates = ((call_id, message["customer"]["number"]) for call_id, message in messages)
    return {call_id for call_id, customer in chain(of_calls, of_updates) if _is_of(who, number, call_id, customer)}


def _is_of(who: str, number: str, call_id: str, customer: str | None) -> bool:
    """Whether a call is of `who`, whose `number` has these digits. An id has it where nine digits or more do."""
    if who in (call_id, customer, customer and numbers.user(customer)):
        return True
    theirs = [numbers.digits(customer)] if customer and numbers.is_number(customer) else []
    if len(number) >= numbers.SHARED:
        theirs += re.findall(f"[0-9]{{{numbers.SHARED},}}", call_id)
    return bool(number) and any(numbers.are_same(number, digits) for digits in theirs)


def remove(db: Database, call_ids: Collection[str]) -> int:
    """Atomically remove calls with all that is kept of them. Returns how many updates that is."""
    number = 0
    with db.transaction() as execute:
        for call_id in call_ids:
            number += len(execute("DELETE FROM updates WHERE call_id = :id RETURNING 1", {"id": call_id}))
            execute("DELETE FROM calls WHERE id = :id", {"id": call_id})
    return number
