"""What a store keeps and reports. Times are Unix seconds."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, NamedTuple

from schemas.status_update import StatusUpdate, load_update


class StoreError(Exception):
    """The store cannot keep or find anything now; the text names the file or server and the cause."""


class Refused(StoreError):
    """The store works, but takes no such row: trying again cannot help."""


@dataclass(frozen=True, slots=True)
class Job:
    """One handler's work on one update.

    `due_at`: when a pending one is next tried, when a leased one's lease ends; None once it is done or failed.
    `attempts`: how often it was tried, `first_tried_at`: when first, `error`: why the last failed attempt did,
    `done_at`: when it was done, unless that was at once, or failed for good.
    """

    handler: str
    state: Literal["pending", "leased", "done", "failed"]
    due_at: float | None
    attempts: int = 0
    first_tried_at: float | None = None
    error: str | None = None
    done_at: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether it is still to be done by itself: pending or leased."""
        return self.due_at is not None


class Change(NamedTuple):
    """What became of a job that was leased until `lease`. `at_once`: it was done in the request that brought the
    update, so that the job goes. `failed_at`: when the attempt failed, where it did, after so many `seconds`."""

    update_id: int
    lease: float | None
    job: Job
    at_once: bool = False
    failed_at: float | None = None
    seconds: float = 0.0


class StoredUpdate(NamedTuple):
    """One kept update. `message`: JSON that `load` reads; `kept_at`: when this store got it; `times`: how often the
    webhook received it, `last_received_at`: when last.

    `handlers`: the names of the handlers it was given to. One of them without a job did its work at once; one that is
    not named was off, or wanted nothing. None where an import did not say.
    """

    id: int
    call_id: str
    status: str
    received_at: float
    kept_at: float
    message: str
    times: int
    last_received_at: float
    handlers: tuple[str, ...] | None = None
    jobs: tuple[Job, ...] = ()

    def load(self) -> StatusUpdate:
        """The update as its handlers first got it."""
        return load_update(json.loads(self.message), datetime.fromtimestamp(self.received_at, UTC))


class Kept(NamedTuple):
    """What came of keeping an update. A new one has an id, and its jobs are leased until `lease`."""

    outcome: Literal["new", "repeat", "spooled"]
    update_id: int | None = None
    lease: float = 0.0


class CallRecord(NamedTuple):
    """What is known of one call. `started_at` and `ended_at` are the provider's times; those `received` are ours.

    `seconds`: how long it lasted; None while it is not over, or where its times contradict each other.
    `checked_at`: when the provider was last asked about it; `unknown`: the provider knew no such call.
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
    seconds: float | None = None
    checked_at: float | None = None
    unknown: bool = False


class Tally(NamedTuple):
    """So many calls of one line that ended with one error, of which `timed` lasted `seconds` together. `error` is None
    of those that did not end with one, '' where it had no message. `latest`: when the latest was first heard of."""

    line: str | None
    line_name: str | None
    error: str | None
    calls: int
    timed: int
    seconds: float
    latest: float


class Backlog(NamedTuple):
    """How many jobs a handler has pending and failed, and why the latest of them was not done.

    `oldest`: when the update of the oldest pending one was received, `due_at`: when the next one is tried, `failed_at`:
    when the last one failed for good.
    """

    handler: str
    pending: int
    failed: int
    oldest: float | None
    error: str | None
    failed_at: float | None = None
    due_at: float | None = None
