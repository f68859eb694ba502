"""Requests that were refused, counted by the hour and reason."""

from collections.abc import Iterable
from dataclasses import asdict

from stores import Database
from stores.records import RefusalCount, hour_of


def add(db: Database, refused: Iterable[RefusalCount]) -> None:
    """Add to what was refused for each reason in the hour that its `latest` is in."""
    for each in refused:
        db.execute(
            "INSERT INTO refusals AS r (hour, reason, times, latest) VALUES (:hour, :reason, :times, :latest)"
            " ON CONFLICT (hour, reason) DO UPDATE SET times = r.times + excluded.times,"
            " latest = CASE WHEN excluded.latest > r.latest THEN excluded.latest ELSE r.latest END",
            {"hour": hour_of(each.latest), **asdict(each)},
        )


def since(db: Database, moment: float) -> list[RefusalCount]:
    """What was refused for each reason, from the hour that `moment` is in; most often first."""
    found = db.query(
        "SELECT reason, sum(times), max(latest) FROM refusals WHERE hour >= :hour GROUP BY reason"
        " ORDER BY sum(times) DESC, reason",
        {"hour": hour_of(moment)},
    )
    return [RefusalCount(reason, int(times), latest) for reason, times, latest in found]
