"""The list of calls as a URL asks for it, and as a file."""

import csv
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from flask import abort, request

from dashboard.access import error_response
from schemas.times import iso, parse_time
from stores import Database, search
from stores.records import CallRecord
from stores.search import Filters, Page

TIME_FILTERS = {"since", "until"}
NAMES = CallRecord._fields
TIMES = [name for name in NAMES if name.endswith("_at")]
# What a spreadsheet takes for the beginning of a cell, and of a formula in it, also where `;` separates its cells; and
# what it takes for a number that it writes in its own way.
_FORMULA = re.compile(r"(\A|[;\t\r\n])([\s\"]*[=+\-@＝＋－＠])")
_NUMBER = re.compile(r"[0-9.,]+(?:[eE][0-9]+)?")


def read_url(db: Database) -> tuple[dict[str, Any], Filters, Page]:
    """What the URL asks for: the filters that say something, as they stand there and as they are meant, and the page of
    the list. Ends the request with 400 where it makes no sense."""
    query: dict[str, Any] = {name: text for name in Filters._fields if (text := request.args.get(name, "").strip())}
    try:
        times: dict[str, Any] = {name: parse_time(query[name]).timestamp() for name in query.keys() & TIME_FILTERS}
        filters = Filters(**query | times)
        return query, filters, search.find(db, filters, request.args.get("before"))
    except ValueError:
        abort(error_response(400, "give since and until as 2025-12-13T12:00Z, and before as the links have it"))


def call_state(call: CallRecord) -> dict[str, Any]:
    """One call in `/calls.json`, or a line of the file: all that is known of it, times in ISO 8601."""
    return {name: getattr(call, name) for name in NAMES} | {name: iso(getattr(call, name)) for name in TIMES}


def every_call(db: Database, filters: Filters, page: Page) -> Iterator[CallRecord]:
    """All calls that the filters let through, from `page` on, read in pages: it holds nothing up."""
    yield from page.calls
    while page.older:
        page = search.find(db, filters, page.older, limit=500)
        yield from page.calls


def csv_lines(calls: Iterator[CallRecord]) -> Iterator[str]:
    """Lines that Excel, LibreOffice and Google read alike: as UTF-8, times as times, nothing as a formula."""
    writer = csv.writer(SimpleNamespace(write=str))  # which returns the line that it is given
    yield "\ufeff" + writer.writerow(f"{name} (UTC)" if name in TIMES else name for name in NAMES)
    for call in calls:
        state = call_state(call)
        state |= {name: state[name][:19].replace("T", " ") for name in TIMES if state[name]}
        yield writer.writerow(map(spreadsheet_cell, state.values()))


def spreadsheet_cell(value: Any) -> Any:
    """A cell's value; an apostrophe makes a text of what a spreadsheet would take for something else."""
    if not isinstance(value, str) or re.fullmatch(r"\+[0-9]{1,15}", value):
        return value
    return f"'{value}" if _NUMBER.fullmatch(value) else _FORMULA.sub(r"\1'\2", value)
