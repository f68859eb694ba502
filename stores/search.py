"""The list of calls: filtered, newest first, in pages."""

from collections.abc import Iterator
from math import inf, isfinite
from typing import Any, NamedTuple

from schemas.statuses import ENDED_WITH_ERROR, FINAL, IN_PROGRESS
from schemas.strict_json import storable
from stores import numbers
from stores.calls import FAILED_STATUS, read
from stores.database import Database
from stores.records import CallRecord

NONE = "none"  # of a detail: calls without it; as an error: calls that ended with one that has no message
DIGITS = 4  # the fewest that a number is found by
OFFERED = 50  # of each kind that `choices` has

_OLDER = "received_at >= :since AND received_at <= :at AND (received_at < :at OR id < :id)"
_BY_ID = "id >= :search AND id <= :last"
_BY_NUMBER = f"""id IN (SELECT id FROM calls WHERE substr(digits, length(digits) - 3) = :ending
    AND (digits LIKE '%' || :digits
      OR length(ltrim(digits, '0')) >= {numbers.SHARED} AND :digits LIKE '%' || ltrim(digits, '0'))
  UNION ALL SELECT id FROM calls WHERE {_BY_ID})"""
_BY_TEXT = f"({_BY_ID} OR customer = :search OR customer LIKE '%@%' AND replace(customer, :user, '') <> customer)"
_STATUS = {
    IN_PROGRESS: "start_received_at IS NOT NULL AND end_received_at IS NULL",
    ENDED_WITH_ERROR: FAILED_STATUS,
    "other": f"status NOT IN {(IN_PROGRESS, *FINAL)}",
}
_WORK = {"pending": "state <> 'done' AND due_at IS NOT NULL", "failed": "state <> 'done' AND due_at IS NULL"}
_UNDONE = "id IN (SELECT call_id FROM updates JOIN jobs ON update_id = updates.id WHERE {})"


class Filters(NamedTuple):
    """Which calls; what is empty lets all through.

    `search` is a number in any form, its last four digits or more, a SIP user, a customer as written, or the beginning
    of an id. `status` may be "other"; "ended-with-error" is any that ends a call with an error. `work` is "pending" or
    "failed", `handler` whose work that is. `error` is a part of the message, or in double quotes all of it. `since`
    and `until` are about the call's first update.
    """

    search: str = ""
    status: str = ""
    work: str = ""
    handler: str = ""
    error: str = ""
    end_reason: str = ""
    line: str = ""
    type: str = ""
    since: float | None = None
    until: float | None = None

    @property
    def digits(self) -> str:
        """Those of the number that is searched for, less the zeros that are dialled before it; empty where there are
        too few."""
        digits = numbers.digits(self.search) if numbers.is_number(self.search) else ""
        digits = digits.lstrip("0") if len(digits) > 8 else digits
        return digits if len(digits) >= DIGITS else ""


class Page(NamedTuple):
    """Calls, newest first. `older`: the `before` of the next page; None at the end."""

    calls: list[CallRecord]
    older: str | None = None


def find(db: Database, filters: Filters, before: str | None = None, limit: int = 50) -> Page:
    """A page of the calls that all filters let through: the newest or, as another page's `older` says, those `before`.
    Raises ValueError where that is no place in the list."""
    at, last_id = min(_place(before) if before else (inf, ""), (inf if filters.until is None else filters.until, ""))
    values: dict[str, Any] = {name: storable(str(text or "")) for name, text in filters._asdict().items()}
    values |= {"digits": filters.digits, "ending": filters.digits[-DIGITS:]}
    values |= {"last": f"{values['search']}\U0010ffff", "user": f":{values['search']}@"}
    values |= {"since": filters.since or 0, "at": at, "id": storable(last_id), "limit": limit + 1}
    where = " AND ".join([_OLDER, *_conditions(filters)])
    rows = read(db, f"{where} ORDER BY received_at DESC, id DESC LIMIT :limit", **values)
    page = rows[:limit]
    return Page(page, f"{page[-1].received_at!r}~{page[-1].id}" if len(rows) > limit else None)


def _place(before: str) -> tuple[float, str]:
    """The `received_at` and id of the call that a page begins before."""
    at, _, id = before.partition("~")
    if not isfinite(float(at)):
        raise ValueError("no time")
    return float(at), id


def _conditions(filters: Filters) -> Iterator[str]:
    """What the filters mean in SQL."""
    if filters.search:
        yield _BY_NUMBER if filters.digits else _BY_TEXT
    if filters.status:
        yield _STATUS.get(filters.status, "status = :status")
    if filters.work in _WORK:
        of_handler = " AND handler = :handler" if filters.handler else ""
        yield _UNDONE.format(_WORK[filters.work] + of_handler)
    if filters.error == NONE:
        yield f"{FAILED_STATUS} AND coalesce(error, '') = ''"
    elif filters.error:  # to LIKE, some characters are not themselves, nor the same to both databases
        contains = "replace(lower(error), lower(:error), '') <> lower(error)"
        yield f"""{FAILED_STATUS} AND (:error = '"' || error || '"' OR {contains})"""
    for column in ("end_reason", "line", "type"):
        if value := getattr(filters, column):
            yield f"{column} IS NULL" if value == NONE else f"{column} = :{column}"


def choices(db: Database) -> dict[str, Any]:
    """What the calls that are kept have, at most OFFERED of each: `lines` with a name of each, `types`, `end_reasons`,
    and the most frequent `errors`. This reads every call: half a million take 0.3 s."""
    sources = {
        "types": "SELECT DISTINCT type FROM calls WHERE type IS NOT NULL ORDER BY 1",
        "end_reasons": "SELECT DISTINCT end_reason FROM calls WHERE end_reason IS NOT NULL ORDER BY 1",
        "errors": f"SELECT coalesce(error, '') FROM calls WHERE {FAILED_STATUS} GROUP BY 1 ORDER BY count(*) DESC, 1",
    }
    texts = {name: [row[0] for row in db.query(f"{sql} LIMIT {OFFERED}")] for name, sql in sources.items()}
    lines = db.query(f"SELECT DISTINCT line, line_name FROM calls LIMIT {OFFERED}")
    return texts | {"lines": dict(sorted(lines, key=lambda line: (line[0] is None, line[1] or line[0] or "")))}
