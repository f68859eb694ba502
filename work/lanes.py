"""A lane for each handler that is on: its places, and how its service is, as far as this process knows."""

import logging
import threading
import time
from typing import Any, NamedTuple

from flask import Flask, current_app

from handlers import ASKS_NOBODY, WANTS, Handler, active_handlers
from handlers.errors import Deferred, GiveUp, OutOfPatience, Retry, Unavailable
from schemas.status_update import StatusUpdate
from stores import StoreError
from stores.records import Job

PLACES = 16  # for requests, and as many for the worker

logger = logging.getLogger(__name__)


class Attempt(NamedTuple):
    """One call of a lane's handler for the `job` that was leased; `error` is None if its work is done."""

    lane: "Lane"
    job: Job
    error: Exception | None
    seconds: float = 0.0


class Lane:
    """`state` is well, slow (its service last took over a second) or away (it failed three times in a row, or asked to
    be left alone). `reason` is what the service said last. A request calls the handler only while the lane is well.

    `in_hand` has the updates whose jobs this process does, or has still to write what became of: it must not lease them
    again, however long ago their leases ran out. Threads share the set, as adding and removing are atomic.
    """

    def __init__(self, handler: Handler):
        self.handler, self.name = handler, handler.__name__
        self.reason = ""
        self.in_hand: set[int] = set()
        self.work = threading.Event()  # there may be something for the worker
        self._asks = handler not in ASKS_NOBODY
        self._places = threading.BoundedSemaphore(PLACES)
        self._slow, self._failures = False, 0
        self._asked_at: float | None = None  # when a service that is away is asked next, of time.monotonic()
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        return "away" if self._asked_at is not None else "slow" if self._slow else "well"

    def wants(self, update: StatusUpdate) -> bool:
        return self.handler not in WANTS or WANTS[self.handler](update)

    def call_in_request(self, update: StatusUpdate, lease: float) -> Attempt:
        """Call the handler if the lane is well and has a free place, else leave its job, which is leased until `lease`,
        to the worker."""
        job = Job(self.name, "leased", lease)
        if not self._asks:
            return self.call(update, job)
        if self.state != "well":
            return Attempt(self, job, Deferred(self.reason or "its service is slow"))
        if not self._places.acquire(blocking=False):
            return Attempt(self, job, Deferred("too many requests wait for its service"))
        try:
            return self.call(update, job)
        finally:
            self._places.release()

    def call(self, update: StatusUpdate, job: Job) -> Attempt:
        """Call the handler. Whatever it raises is caught, so that none stops another."""
        started, error = time.monotonic(), None
        try:
            self.handler(update)
        except Exception as raised:
            error = raised
        seconds = time.monotonic() - started
        if not isinstance(error, Deferred):
            self._learn(error, seconds)
            if error:
                self._log(update, error, seconds)
        return Attempt(self, job, error, seconds)

    def asked_in(self) -> float | None:
        """Seconds until a service that is away is asked again; None where it is not away."""
        asked_at = self._asked_at
        return None if asked_at is None else max(asked_at - time.monotonic(), 0.0)

    def ask_now(self) -> None:
        """Let the worker ask a service that is away, and look for work, at once."""
        with self._lock:
            if self._asked_at is not None:
                self._asked_at = time.monotonic()
        self.work.set()

    def _learn(self, error: Exception | None, seconds: float) -> None:
        """Note how the service is: only what it did itself says anything of it."""
        if not self._asks or not isinstance(error, Retry | GiveUp | None):
            return
        config = current_app.config
        with self._lock:
            self.reason = str(error or "")
            if isinstance(error, Unavailable):
                self._failures += 1
                if error.after or self._failures >= config["AWAY_AFTER"]:
                    self._asked_at = time.monotonic() + (error.after or config["ASK_EVERY"])
            elif isinstance(error, OutOfPatience):
                self._slow = True
            else:
                self._slow, self._failures, self._asked_at = seconds > config["SLOW_AFTER"], 0, None

    def _log(self, update: StatusUpdate, error: Exception, seconds: float) -> None:
        extra: dict[str, Any] = {"call_id": update.call.id, "status": update.call.status, "handler": self.name}
        extra |= {"error": str(error), "ms": round(1000 * seconds)}
        if isinstance(error, Retry | GiveUp | StoreError):
            logger.warning("handler failed", extra=extra)
        else:
            logger.error("handler failed", exc_info=error, extra=extra)


def init_app(app: Flask) -> None:
    app.extensions["lanes"] = [Lane(handler) for handler in active_handlers(app.config)]


def get_lanes() -> list[Lane]:
    """The lanes of the handlers that are on, in the order of HANDLERS."""
    lanes: list[Lane] = current_app.extensions["lanes"]
    return lanes


def get_lane(name: str) -> Lane | None:
    """The lane of the handler with this name; None where there is no such handler, or it is off."""
    return next((lane for lane in get_lanes() if lane.name == name), None)
