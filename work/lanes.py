"""A lane for each handler that is on: its places, and how its service is, as far as this process knows."""

import logging
import sys
import threading
import time
from logging import ERROR, WARNING
from typing import Any

from flask import Flask, current_app

from handlers import ASKS_NOBODY, WANTS, Handler, active_handlers
from handlers.errors import Deferred, GiveUp, OutOfPatience, Retry, Unavailable
from schemas.status_update import StatusUpdate
from stores import StoreError, get_store
from stores.records import Change, Job
from work.schedule import after_attempt

PLACES = 16  # for requests, and as many for the worker

logger = logging.getLogger(__name__)


class Lane:
    """`state` is well, slow (its service last took over a second) or away (it failed three times in a row, or asked to
    be left alone). `reason` is what the service said last. A request calls the handler only while the lane is well.

    `in_hand` has the updates whose jobs this process does, or has still to write what became of: it must not lease them
    again, however long ago their leases ran out. `running` has those that the worker does, and since when, of
    time.monotonic(). Threads share both, as adding and removing are atomic.
    """

    def __init__(self, handler: Handler):
        self.handler, self.name = handler, handler.__name__
        self.state, self.reason = "well", ""
        self.in_hand: set[int] = set()
        self.running: dict[int, float] = {}
        self.work = threading.Event()  # there may be something for the worker
        self._asks = handler not in ASKS_NOBODY
        self._places = threading.BoundedSemaphore(PLACES if self._asks else sys.maxsize)
        self._width = 1 if self._asks else PLACES  # how many jobs the worker does at a time
        self._failures, self._asked_at = 0, 0.0  # when a service that is away is asked next, of time.monotonic()
        self._lock = threading.Lock()

    def wants(self, update: StatusUpdate) -> bool:
        return self.handler not in WANTS or WANTS[self.handler](update)

    def call_in_request(self, update: StatusUpdate, update_id: int, lease: float) -> Change:
        """Call the handler if the lane is well and has a free place, else leave its job, which is leased until `lease`,
        to the worker."""
        job = Job(self.name, "leased", lease)
        if self.state != "well":
            return self.change(update_id, job, Deferred(self.reason or "its service is slow"))
        if not self._places.acquire(blocking=False):
            return self.change(update_id, job, Deferred("too many requests wait for its service"))
        try:
            change = self.call(update, update_id, job)
        finally:
            self._places.release()
        return change._replace(at_once=change.job.state == "done")

    def call(self, update: StatusUpdate, update_id: int, job: Job) -> Change:
        """Call the handler. Whatever it raises is caught, so that none stops another."""
        start, error = time.monotonic(), None
        try:
            self.handler(update)
        except Exception as raised:
            error = raised
        seconds = time.monotonic() - start
        self._learn(error, seconds)
        change = self.change(update_id, job, error, seconds)
        if change.failed_at:
            is_bug = not isinstance(error, Retry | GiveUp | StoreError)
            extra: dict[str, Any] = {"call_id": update.call.id, "status": update.call.status, "handler": self.name}
            extra |= {"error": str(error), "ms": round(1000 * seconds)}
            logger.log(ERROR if is_bug else WARNING, "handler failed", exc_info=error if is_bug else None, extra=extra)
        return change

    def change(self, update_id: int, job: Job, error: Exception | None, seconds: float = 0.0) -> Change:
        """What becomes of a leased job after an attempt that took so many seconds."""
        now = get_store().now()
        after = after_attempt(job, error, now, current_app.config, self.asked_in())
        failed = after.state != "done" and not isinstance(error, Deferred)
        return Change(update_id, job.due_at, after, failed_at=now if failed else None, seconds=seconds)

    def free_places(self) -> int:
        """How many jobs the worker may start now. One that runs for longer than a service may take holds up no other,
        and a service that is away is asked by one at a time."""
        if self.asked_in():
            return 0
        return max(min(self._width - self.in_time(), PLACES - len(self.running)), 0)

    def in_time(self) -> int:
        """How many of the jobs that the worker does have not run for longer than a service may take."""
        late: float = time.monotonic() - sum(current_app.config["WORKER_PATIENCE"])
        return sum(start > late for start in list(self.running.values()))

    def asked_in(self) -> float | None:
        """Seconds until a service that is away is asked again; None where it is not away."""
        return max(self._asked_at - time.monotonic(), 0.0) if self.state == "away" else None

    def ask_now(self) -> None:
        """Let the worker ask a service that is away, and look for work, at once."""
        self._asked_at = 0.0
        self.work.set()

    def _learn(self, error: Exception | None, seconds: float) -> None:
        """Note how the service is: only what it did itself says anything of it. Each success makes room for one more
        job at a time, so that twice as many are started once all have succeeded; a failure leaves half as many."""
        if not self._asks or isinstance(error, Deferred) or not isinstance(error, Retry | GiveUp | None):
            return
        config = current_app.config
        with self._lock:
            was_away, self.reason = self.state == "away", str(error or "")
            if isinstance(error, Unavailable):
                self._failures, self._width = self._failures + 1, max(self._width // 2, 1)
                if error.after or self._failures >= config["AWAY_AFTER"]:
                    self._asked_at = time.monotonic() + min(error.after or config["ASK_EVERY"], config["RETRY_LONGEST"])
                    self.state, self._width = "away", 1
            elif not isinstance(error, OutOfPatience):
                self.state, self._failures = "slow" if seconds > config["SLOW_AFTER"] else "well", 0
                if error is None:
                    self._width = min(self._width + 1, PLACES)
            elif not was_away:
                self.state = "slow"
            if was_away != (self.state == "away"):
                text = "its service is back" if was_away else "its service is away"
                logger.warning(text, extra={"handler": self.name, "error": self.reason or None})


def init_app(app: Flask) -> None:
    app.extensions["lanes"] = [Lane(handler) for handler in active_handlers(app.config)]


def get_lanes() -> list[Lane]:
    """The lanes of the handlers that are on, in the order of HANDLERS."""
    lanes: list[Lane] = current_app.extensions["lanes"]
    return lanes


def get_lane(name: str) -> Lane | None:
    """The lane of the handler with this name; None where there is no such handler, or it is off."""
    return next((lane for lane in get_lanes() if lane.name == name), None)
