"""The list of calls as a URL asks for it, and as a file."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from math import isfinite
from types import SimpleNamespace
from typing import Any

from flask import Response, abort, request

from dashboard.figures import remembered
from dashboard.presenters import SHOWN, call_state
from schemas.times import parse_time
from stores import Database, search
from stores.records import CallRecord
from stores.search import Choices, Filters, Page, find

NAMES = [field.name for field in fields(Filters)]
CHOSEN_AGAIN = 60.0  # seconds for which the same is offered to choose from
# What a spreadsheet takes for the beginning of a cell, and of a formula in it, also where `;` separates its cells; and
# what it takes for a number that it writes in its own way.
_FORMULA = re.compile(r"(\A|[;\t\r\n])([\s\"]*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[0-9.,]+(?:[eE][0-9]+)?")


def query() -> dict[str, str]:
    """The filters in the URL that say something, as they stand there."""
    return {name: text for name in NAMES if (text := request.args.get(name, "").strip())}


def filters() -> Filters:
    """The filters that the URL asks for. Ends the request with 400 where one is no time."""
    values: dict[str, Any] = query()
    values |= {name: _seconds(values[name]) for name in ("since", "until") if name in values}
    return Filters(**values)


def page(db: Database) -> Page:
    """The page of the list that the URL asks for."""
    at, _, id = request.args.get("before", "").partition("~")
    return find(db, filters(), (_number(at), id) if at else None)


def choices(db: Database) -> Choices:
    """What the form offers to choose from: what the calls have that are kept."""
    return remembered("choices", CHOSEN_AGAIN, db.now(), lambda: search.choices(db))


def before(page: Page) -> str | None:
    """What the URL of the next page has as `before`."""
    return page.older and f"{page.older[0]!r}~{page.older[1]}"


def download(db: Database, kind: str) -> Response:
    """All calls that the filters let through, as CSV or lines of JSON, read from the store while they are sent."""
    states = map(call_state, _every_call(db, filters()))
    lines = _csv(states) if kind == "csv" else (json.dumps(state) + "\n" for state in states)
    mimetype = {"csv": "text/csv", "jsonl": "application/jsonl"}[kind]
    return Response(lines, mimetype=mimetype, headers={"Content-Disposition": f"attachment; filename=calls.{kind}"})


def _every_call(db: Database, wanted: Filters) -> Iterator[CallRecord]:
    page = find(db, wanted, limit=500)
    yield from page.calls
    while page.older:
        page = find(db, wanted, page.older, limit=500)
        yield from page.calls


def _csv(states: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines that Excel, LibreOffice and Google read alike: as UTF-8, times as times, nothing as a formula."""
    writer = csv.writer(SimpleNamespace(write=str))  # which returns the line that it is given
    times = {name for name in SHOWN if name.endswith("_at")}
    yield "\ufeff" + writer.writerow(f"{name} (UTC)" if name in times else name for name in SHOWN)
    for state in states:
        yield writer.writerow(
            _time(value) if name in times else spreadsheet_cell(value) for name, value in state.items()
        )


def _time(iso: str | None) -> str | None:
    return iso and iso[:19].replace("T", " ")


def spreadsheet_cell(value: Any) -> Any:
    """A cell's value; an apostrophe makes a text of what a spreadsheet would take for something else."""
    if not isinstance(value, str) or re.fullmatch(r"\+[0-9]{1,15}", value):
        return value
    return f"'{value}" if _NUMBER.fullmatch(value) else _FORMULA.sub(r"\1'\2", value)


def _seconds(text: str) -> float:
    try:
        return parse_time(text).timestamp()
    except (ValueError, OverflowError):
        abort(400, "give since and until as 2025-12-13T12:00Z")


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    return number if isfinite(number) else abort(400, "before is no page of this list: begin with the first")
