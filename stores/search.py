"""The list of calls: filtered and newest first, in pages that take no longer the more calls are kept."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import inf
from operator import itemgetter
from typing import Any

from schemas.status_update import storable
from schemas.statuses import ENDED_WITH_ERROR, ERRORS, FINAL, IN_PROGRESS
from stores.calls import COLUMNS, NO_LIMIT, read
from stores.database import Database
from stores.records import Call

NONE = "none"  # as a line: calls without one; as an error: calls that ended with one that has no message
DIGITS = 4  # the fewest that a number is found by
SCANNED = 2000  # calls that one page looks at for those that every filter lets through
FEW = 2000  # calls that are sorted where no index has them in the order of the list

_FEW, _INDEXED, _OTHER = range(3)  # conditions that few calls meet; that an index finds newest first; and the rest
_OLDER = "received_at >= :since AND received_at <= :at AND (received_at < :at OR id < :id)"
_NEWEST = "ORDER BY received_at DESC, id DESC"
_NEAR = "id >= :search AND id <= :last"
_WORK = {"pending": "state <> 'done' AND due_at IS NOT NULL", "failed": "state <> 'done' AND due_at IS NULL"}
_STATUS = {
    IN_PROGRESS: (_FEW, "start_received_at > 0 AND start_received_at IS NOT NULL AND end_received_at IS NULL"),
    ENDED_WITH_ERROR: (_INDEXED, f"status IN {ERRORS}"),
    "other": (_INDEXED, f"status NOT IN {(IN_PROGRESS, *FINAL)}"),
}


@dataclass(frozen=True, slots=True)
class Filters:
    """Which calls; what is empty lets all through.

    `search` is a number, its last four digits or more, or the beginning of an id. `status` may be "other". `work` is
    "pending" or "failed", `handler` whose work that is. `since` and `until` are about the call's first update.
    """

    search: str = ""
    status: str = ""
    work: str = ""
    handler: str = ""
    error: str = ""
    line: str = ""
    type: str = ""
    since: float | None = None
    until: float | None = None

    @property
    def digits(self) -> str:
        """Those of the number that is searched for, less the zeros that are dialled before it; empty where there are
        too few."""
        digits = re.sub("[^0-9]", "", self.search) if re.fullmatch("[+0-9 ().-]+", self.search) else ""
        digits = digits.lstrip("0") if len(digits) > 8 else digits
        return digits if len(digits) >= DIGITS else ""


@dataclass(frozen=True, slots=True)
class Page:
    """Calls, newest first. `older`: the `received_at` and id that the next page begins before; None at the end.

    There may be less than a page, or nothing, before that: it is how far this page has looked.
    """

    calls: list[Call]
    older: tuple[float, str] | None = None


def find(db: Database, filters: Filters, before: tuple[float, str] | None = None, limit: int = 50) -> Page:
    """A page of the calls that all filters let through: those older than `before`."""
    page = _find(db, filters, filters.digits, before, limit)
    if filters.digits and page == Page([]):  # an id may begin with digits, too
        page = _find(db, filters, "", before, limit)
    return page


def _find(db: Database, filters: Filters, digits: str, before: tuple[float, str] | None, limit: int) -> Page:
    values = {name: storable(str(text or "")) for name, text in asdict(filters).items()}
    values |= {"ending": digits[-DIGITS:], "number": f"%{digits}", "limit": limit + 1}
    values |= {"length": len(values["search"]), "last": f"{values['search']}\U0010ffff", "since": filters.since or 0}
    values["error"] = "" if filters.error == NONE else values["error"]
    values["at"], id = min(before or (inf, ""), (inf if filters.until is None else filters.until, ""))
    values["id"] = storable(id)
    conditions = sorted(_conditions(db, filters, digits, values), key=itemgetter(0))  # leaves a kind in its order
    if not conditions or conditions[0][0] == _OTHER:
        conditions.insert(0, (_INDEXED, "1 = 1"))
    (kind, first), *others = conditions
    looked_at = f"SELECT {COLUMNS} FROM calls WHERE {first}"
    if kind == _FEW:
        looked_at += f" LIMIT {NO_LIMIT}"  # so that they are not looked for among all calls, in the order of the list
    else:
        looked_at += f" AND {_OLDER} {_NEWEST} LIMIT {SCANNED if others else ':limit'}"
    where = " AND ".join([_OLDER, *(condition for _, condition in others)])
    found = read(db, f"{where} {_NEWEST} LIMIT :limit", f"({looked_at}) AS c", **values)
    if len(found) > limit:
        return Page(found[:limit], (found[limit - 1].received_at, found[limit - 1].id))
    last = f"SELECT received_at, id FROM calls WHERE {first} AND {_OLDER} {_NEWEST} LIMIT 1 OFFSET {SCANNED - 1}"
    end = db.query(last, values) if kind == _INDEXED and others else []
    return Page(found, end[0] if end else None)


def _conditions(db: Database, filters: Filters, digits: str, values: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """What the filters mean in SQL, the most telling first."""
    if digits:
        yield _INDEXED, "substr(customer, length(customer) - 3) = :ending"
        yield _OTHER, "customer LIKE :number"
    elif filters.search:
        begins = f"{_NEAR} AND substr(id, 1, :length) = :search"
        yield _FEW if _are_few(db, f"calls WHERE {_NEAR}", values) else _OTHER, begins
    if filters.work in _WORK:
        undone = f"{_WORK[filters.work]}{' AND handler = :handler' if filters.handler else ''}"
        if _are_few(db, f"jobs WHERE {undone}", values):
            yield _FEW, f"id IN (SELECT call_id FROM updates WHERE id IN (SELECT update_id FROM jobs WHERE {undone}))"
        else:
            joined = "updates AS u JOIN jobs ON update_id = u.id"
            yield _OTHER, f"EXISTS (SELECT 1 FROM {joined} WHERE call_id = c.id AND {undone})"
    if filters.error:
        yield _INDEXED, f"status IN {ERRORS} AND coalesce(error, '') = :error"
    if filters.status:
        yield _STATUS.get(filters.status, (_OTHER, "status = :status"))
    if filters.line:
        yield _INDEXED, "line IS NULL" if filters.line == NONE else "line = :line"
    if filters.type:
        yield _INDEXED, "type = :type"


def _are_few(db: Database, rows: str, values: Mapping[str, Any]) -> bool:
    """Whether so few rows are found that all can be sorted."""
    return db.query(f"SELECT count(*) FROM (SELECT 1 FROM {rows} LIMIT {FEW}) AS r", values)[0][0] < FEW
