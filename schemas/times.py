"""Times: the provider's are ISO 8601, the store's Unix seconds; all are in UTC."""

import time
from datetime import MAXYEAR, MINYEAR, UTC, datetime

from flask import current_app


def parse_time(text: str) -> datetime:
    """A time in ISO 8601, aware; UTC is meant where no zone is given. Raises ValueError, and OverflowError where
    `in_utc` does."""
    moment = datetime.fromisoformat(text)
    return in_utc(moment.replace(tzinfo=moment.tzinfo or UTC))


def in_utc(time: datetime) -> datetime:
    """An aware time in UTC. Raises OverflowError where not every zone and rounding keeps it in the years 1 to 9999."""
    time = time.astimezone(UTC)
    if not MINYEAR < time.year < MAXYEAR:
        raise OverflowError
    return time


def isoformat(time: datetime) -> str:
    """A time in UTC as the provider writes it: ISO 8601, milliseconds, `Z`."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601."""
    return None if seconds is None else isoformat(datetime.fromtimestamp(seconds, UTC))


def clock() -> float:
    """This machine's time in Unix seconds, in one place, so that tests can set it. What is kept goes by the store's."""
    return (current_app.config["CLOCK"] or time.time)()
