"""Calls, errors and durations of the last day, week or month, beside those before."""

from collections.abc import Iterable
from typing import Any

from flask import current_app

from schemas.times import iso
from stores import Database, calls
from stores.records import Tally

HOUR, DAY = 3600, 24 * 3600
PERIODS = {1: HOUR, 7: 6 * HOUR, 30: DAY}  # by days: the seconds of each bar of the chart
SETTLED = 3 * HOUR  # after which hardly anything changes, so that it is read again once a minute only
KEPT = 60  # seconds

Tallies = dict[tuple[str, str | None], Tally]  # by line and error message, and of all


def shown(tally: Tally) -> dict[str, Any]:
    """The rate is None where there were no calls, the mean where no call's duration is known."""
    return {
        "calls": tally.calls,
        "errors": tally.errors,
        "error_rate": tally.errors / tally.calls if tally.calls else None,
        "mean_seconds": tally.seconds / tally.timed if tally.timed else None,
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
    return shown(_all(whole)) | {
        "days": days,
        "since": iso(since),
        "before": shown(_all(before)) if before else None,
        "hours": [
            {"hour": iso(start), "until": iso(start + step), "calls": _all(found).calls, "errors": _all(found).errors}
            for start, found in bars.items()
        ],
        "errors_by_message": [
            {"error": error, "calls": tally.calls, "latest": iso(tally.latest)}
            for (kind, error), tally in ranked
            if kind == "error"
        ],
        "lines": [{"line": line, "line_name": names.get(line), **shown(tally)} for line, tally in lines],
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
    for line, error, tally in calls.tallies(db, since, until):
        for key in (("all", None), ("line", line), *([] if error is None else [("error", error)])):
            found.setdefault(key, Tally()).add(tally)
    if until <= settled:
        kept[since, until] = now, found
    return found
