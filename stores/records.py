"""What a store keeps and tells. Times are Unix seconds."""

import threading
from dataclasses import dataclass

from schemas.status_update import StatusUpdate


class StoreError(Exception):
    """The store cannot keep or find anything now; the text names the file or server and the cause."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one handler has still to do on one update.

    `due`: when it is next tried, None once it has failed. `attempts`: how often it was, `first_tried`: when first.
    """

    handler: str
    due: float | None
    attempts: int = 0
    first_tried: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept update. `message`: JSON that `schemas.status_update.load` takes; `kept_at`: when this store got it."""

    call_id: str
    status: str
    received_at: float
    kept_at: float
    message: str
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, slots=True)
class CallState:
    """What is known of one call. `started_at` and `ended_at` are the provider's times; those `received` are ours.

    `asked_at`: when the provider was last asked after it; `unknown`: the provider knew no such call.
    """

    id: str
    status: str
    type: str | None
    line: str | None
    line_name: str | None
    customer: str | None
    received_at: float
    started_at: float | None
    start_received_at: float | None
    ended_at: float | None
    end_received_at: float | None
    error: str | None
    end_reason: str | None
    asked_at: float | None = None
    unknown: bool = False

    @property
    def seconds(self) -> float | None:
        """How long the call lasted; None while it is not over, or where its times contradict each other."""
        if self.started_at is None or self.ended_at is None or self.ended_at < self.started_at:
            return None
        return self.ended_at - self.started_at


@dataclass(frozen=True, slots=True)
class Figures:
    """The calls first heard of in the hour from `hour` that have one status and error; `timed` of them lasted `seconds`
    together. `latest` is when the latest of their updates was received."""

    hour: int
    status: str
    error: str | None
    calls: int
    timed: int
    seconds: float
    latest: float


@dataclass(frozen=True, slots=True)
class Report:
    """What to tell of an error: that `more` updates have one alike; `upto` marks which updates that covers. Where
    `wait` is not 0, nothing is to be told for so many seconds."""

    wait: float
    more: int = 0
    upto: int | str = 0


@dataclass(frozen=True, slots=True)
class Backlog:
    """How many rows a handler has pending and failed; `oldest` is when the oldest pending one's update was received."""

    handler: str
    pending: int
    failed: int
    oldest: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Refused:
    """How many updates were refused for one reason, of a small fixed set, and when the latest was."""

    reason: str
    times: int
    latest: float


class Tracked(threading.local):
    """What this thread has tracked last by recording it."""

    last: StatusUpdate | None = None
