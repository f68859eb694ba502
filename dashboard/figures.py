"""Calls, errors and durations of the last day, week or month, beside those before."""

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from flask import current_app

from schemas.times import clock, iso
from stores import Database, calls
from stores.records import Tally

HOUR, DAY = 3600, 24 * 3600
PERIODS = {1: HOUR, 7: 6 * HOUR, 30: DAY}  # by days: the seconds of each bar of the chart
FRESH = 5.0  # seconds for which figures are shown again
LISTED = 50  # lines, and errors; of the others it is said how many there are

Answer = TypeVar("Answer")


def remembered(key: Hashable, seconds: float, look_up: Callable[[], Answer]) -> Answer:
    """What `look_up` answers, or answered in this process less than so many seconds ago. While it looks, others get the
    answer before."""
    memory, now = current_app.extensions.setdefault("figures", {}), clock()
    if key not in memory or not 0 <= now - memory[key][0] < seconds:
        if key in memory:
            memory[key] = now, memory[key][1]
        memory[key] = now, look_up()
    answer: Answer = memory[key][1]
    return answer


def first_hour(now: float, days: int = 1) -> int:
    """When the first hour of a period began, of which the last is the one that `now` is in."""
    return int(now // HOUR + 1) * HOUR - days * DAY


def figures(db: Database, days: int = 1) -> dict[str, Any]:
    """The figures of so many days until now: in all and by bar, line and error message, those with most calls first.

    `before` is the same time before, None where nothing is kept of it. Raises StoreError.
    """
    return remembered(days, FRESH, lambda: _figures(db, db.now(), days))


def _figures(db: Database, now: float, days: int) -> dict[str, Any]:
    since, step = first_hour(now, days), PERIODS[days]
    bars, tallies = [], []
    for start in range(since, since + days * DAY, step):
        bar = calls.tallies(db, start, start + step)
        counts = {"calls": _count(bar), "errors": _count(_errors(bar))}
        bars.append({"hour": iso(start), "until": iso(start + step), **counts})
        tallies += bar
    lines, errors = defaultdict[Any, list[Tally]](list), defaultdict[Any, list[Tally]](list)
    for tally in tallies:
        lines[tally.line].append(tally)
    for tally in _errors(tallies):
        errors[tally.error].append(tally)
    names = {tally.line: tally.line_name for tally in tallies if tally.line_name}  # what it was last called stands
    has_earlier = current_app.config["RETENTION_DAYS"] >= 2 * days
    earlier = calls.totals(db, since - days * DAY, now - days * DAY) if has_earlier else []
    return _rates(tallies) | {
        "days": days,
        "since": iso(since),
        "before": _rates(earlier) if _count(earlier) else None,
        "hours": bars,
        "errors_by_message": [
            {"error": error, "calls": _count(its), "latest": iso(max(tally.latest for tally in its))}
            for error, its in _most(errors)
        ],
        "more_errors": max(len(errors) - LISTED, 0),
        "lines": [{"line": line, "line_name": names.get(line), **_rates(its)} for line, its in _most(lines)],
        "more_lines": max(len(lines) - LISTED, 0),
    }


def _count(tallies: list[Tally]) -> int:
    return sum(tally.calls for tally in tallies)


def _errors(tallies: list[Tally]) -> list[Tally]:
    """Those of calls that ended with an error."""
    return [tally for tally in tallies if tally.error is not None]


def _rates(tallies: list[Tally]) -> dict[str, Any]:
    """The rate is None where there were no calls, the mean where no call's duration is known."""
    number, errors, timed = _count(tallies), _count(_errors(tallies)), sum(tally.timed for tally in tallies)
    return {
        "calls": number,
        "errors": errors,
        "error_rate": errors / number if number else None,
        "mean_seconds": sum(tally.seconds for tally in tallies) / timed if timed else None,
    }


def _most(groups: dict[Any, list[Tally]]) -> list[tuple[Any, list[Tally]]]:
    """Those with most calls first, at most LISTED."""
    return sorted(groups.items(), key=lambda group: (-_count(group[1]), group[0] or ""))[:LISTED]
