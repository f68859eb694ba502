"""Times: the provider's are ISO 8601, the store's Unix seconds; all are in UTC."""

import re
import time
from datetime import UTC, datetime
from typing import Any

from flask import current_app


def parse_time(text: str) -> datetime:
    """A time in ISO 8601, in UTC, which is meant where no zone is given. Raises ValueError, also for what Unix seconds
    round to a year before 1 or after 9999."""
    moment = datetime.fromisoformat(text)
    return datetime.fromtimestamp(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp(), UTC)


def read_time(value: Any) -> datetime:
    """What a sender means by a time, since 2001 and in UTC: ISO 8601 with a time of day, or Unix seconds or
    milliseconds, as a number or a text. Raises TypeError, ValueError and OverflowError."""
    if isinstance(value, str) and not re.fullmatch(r"([0-9]{10}|[0-9]{13})(\.[0-9]+)?", value):
        if len(value) < len("2025-12-13T12:00"):
            raise ValueError("a day, not a time")
        seconds = parse_time(value).timestamp()
    else:
        seconds = float(value)
        seconds = seconds / 1000 if seconds >= 1e12 else seconds
    if not 1e9 <= seconds < 1e11:
        raise ValueError("no time since 2001")
    return datetime.fromtimestamp(seconds, UTC)


def isoformat(time: datetime) -> str:
    """A time in UTC as the provider writes it: ISO 8601, milliseconds, `Z`."""
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso(seconds: float | None) -> str | None:
    """Unix seconds as ISO 8601."""
    return None if seconds is None else isoformat(datetime.fromtimestamp(seconds, UTC))


def clock() -> float:
    """This machine's time in Unix seconds, in one place, so that tests can set it. What is kept goes by the store's."""
    return (current_app.config["CLOCK"] or time.time)()
