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
FRESH = 10.0  # seconds for which figures are shown again
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
    whole, lines, errors = Tally(), defaultdict[Any, Tally](Tally), defaultdict[Any, Tally](Tally)
    bars, names = [], {}
    for start in range(since, since + days * DAY, step):
        bar = Tally()
        for line, name, error, tally in calls.tallies(db, start, start + step):
            bar.add(tally)
            lines[line].add(tally)
            if name:
                names[line] = name  # what it was last called stands
            if error is not None:
                errors[error].add(tally)
        whole.add(bar)
        bars.append({"hour": iso(start), "until": iso(start + step), "calls": bar.calls, "errors": bar.errors})
    earlier = calls.tally(db, since - days * DAY, now - days * DAY)
    has_earlier = earlier.calls and current_app.config["RETENTION_DAYS"] >= 2 * days
    return _rates(whole) | {
        "days": days,
        "since": iso(since),
        "before": _rates(earlier) if has_earlier else None,
        "hours": bars,
        "errors_by_message": [
            {"error": error, "calls": tally.calls, "latest": iso(tally.latest)} for error, tally in _most(errors)
        ],
        "more_errors": max(len(errors) - LISTED, 0),
        "lines": [{"line": line, "line_name": names.get(line), **_rates(tally)} for line, tally in _most(lines)],
        "more_lines": max(len(lines) - LISTED, 0),
    }


def _rates(tally: Tally) -> dict[str, Any]:
    """The rate is None where there were no calls, the mean where no call's duration is known."""
    return {
        "calls": tally.calls,
        "errors": tally.errors,
        "error_rate": tally.errors / tally.calls if tally.calls else None,
        "mean_seconds": tally.seconds / tally.timed if tally.timed else None,
    }


def _most(tallies: dict[Any, Tally]) -> list[tuple[Any, Tally]]:
    """Those with most calls first, at most LISTED."""
    return sorted(tallies.items(), key=lambda item: (-item[1].calls, item[0] or ""))[:LISTED]
