"""Calls, errors and durations of the last day, week or month, beside those before."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flask import current_app

from schemas.times import iso
from stores import Database, calls
from stores.records import HourlyCount

HOUR, DAY = 3600, 24 * 3600
PERIODS = {1: HOUR, 7: 6 * HOUR, 30: DAY}  # by days: the seconds of each bar of the chart
SETTLED = 3 * HOUR  # after which hardly anything changes, so that it is read again once a minute only
KEPT = 60  # seconds

Tallies = dict[tuple[str, str | None], "Tally"]


@dataclass(slots=True)
class Tally:
    """So many calls, of which so many ended with an error; `timed` of them lasted `seconds` together."""

    calls: int = 0
    errors: int = 0
    timed: int = 0
    seconds: float = 0.0
    latest: float = 0.0

    def add(self, other: "Tally | HourlyCount") -> None:
        self.calls += other.calls
        self.errors += other.errors
        self.timed += other.timed
        self.seconds += other.seconds
        self.latest = max(self.latest, other.latest)

    def shown(self) -> dict[str, Any]:
        """The rate is None where there were no calls, the mean where no call's duration is known."""
        return {
            "calls": self.calls,
            "errors": self.errors,
            "error_rate": self.errors / self.calls if self.calls else None,
            "mean_seconds": self.seconds / self.timed if self.timed else None,
        }


def first_hour(now: float, days: int = 1) -> int:
    """When the first hour of a period began, of which the last is the one that `now` is in."""
    return int(now // HOUR + 1) * HOUR - days * DAY


def figures(db: Database, now: float, days: int = 1) -> dict[str, Any]:
    """The figures of so many days until now: in all and by bar, line and error message, those with most calls first.

    `before` is the same time before, None where nothing is kept of it. Raises StoreError.
    """
    step, since = PERIODS[days], first_hour(now, days)
    bars = {start: _tallies(db, start, start + step, now) for start in range(since, since + days * DAY, step)}
    whole, before = _sum(bars.values()), {}
    if current_app.config["RETENTION_DAYS"] >= 2 * days:
        until = int(now // KEPT * KEPT) - days * DAY
        starts = range(since - days * DAY, until, DAY)
        before = _sum(_tallies(db, start, min(start + DAY, until), now) for start in starts)
    ranked = sorted(whole.items(), key=lambda item: (-item[1].calls, item[0][1] or ""))
    lines = [(line, tally) for (kind, line), tally in ranked if kind == "line"]
    names = calls.line_names(db, [line for line, _ in lines if line][:100])
    return _all(whole).shown() | {
        "days": days,
        "since": iso(since),
        "before": _all(before).shown() if before else None,
        "hours": [
            {"hour": iso(start), "until": iso(start + step), "calls": _all(found).calls, "errors": _all(found).errors}
            for start, found in bars.items()
        ],
        "errors_by_message": [
            {"error": error, "calls": tally.calls, "latest": iso(tally.latest)}
            for (kind, error), tally in ranked
            if kind == "error"
        ],
        "lines": [{"line": line, "line_name": names.get(line), **tally.shown()} for line, tally in lines],
    }


def _all(found: Tallies) -> Tally:
    return found.get(("all", None)) or Tally()


def _sum(pieces: Iterable[Tallies]) -> Tallies:
    found: Tallies = {}
    for piece in pieces:
        for key, tally in piece.items():
            found.setdefault(key, Tally()).add(tally)
    return found


def _tallies(db: Database, since: int, until: int, now: float) -> Tallies:
    """Everything in a time, and by line and error message."""
    kept = current_app.extensions["figures"]
    for key, (read_at, _) in list(kept.items()):
        if not 0 <= now - read_at < KEPT:
            kept.pop(key, None)
    settled = int((now - SETTLED) // HOUR) * HOUR
    if since < settled < until:
        return _sum((_tallies(db, since, settled, now), _tallies(db, settled, until, now)))
    if known := kept.get((since, until)):
        return known[1]
    found: Tallies = {}
    for each in calls.hourly(db, since, until):
        of_error = [("error", each.error or "")] if each.errors else []
        for key in (("all", None), ("line", each.line), *of_error):
            found.setdefault(key, Tally()).add(each)
    if until <= settled:
        kept[since, until] = now, found
    return found
