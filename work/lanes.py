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


class Lane:
    """`state` is well, slow (its service last took over a second) or away (it failed three times in a row, or asked to
    be left alone). `reason` is what the service said last. A request calls the handler only while the lane is well."""

    def __init__(self, handler: Handler):
        self.handler, self.name = handler, handler.__name__
        self.work = threading.Event()  # there may be something for the worker
        self.reason = ""
        self.away_since: float | None = None  # Unix seconds
        self._asks = handler not in ASKS_NOBODY
        self._places = threading.BoundedSemaphore(PLACES)
        self._slow, self._failures = False, 0
        self._asked_at: float | None = None  # when a service that is away is asked next, of time.monotonic()
        self._in_hand: set[int] = set()
        self._lock = threading.Lock()

    @property
    def state(self) -> str:
        return "away" if self._asked_at is not None else "slow" if self._slow else "well"

    def wants(self, update: StatusUpdate) -> bool:
        return self.handler not in WANTS or WANTS[self.handler](update)

    def call_in_request(self, update: StatusUpdate, lease: float) -> "Attempt":
        """Call the handler if the lane is well and has a free place, else leave its job, which is leased until `lease`,
        to the worker."""
        job = Job(self.name, "leased", lease)
        if self.state != "well":
            return Attempt(self, job, Deferred(self.reason or "its service is slow"))
        if self._asks and not self._places.acquire(blocking=False):
            return Attempt(self, job, Deferred("too many requests wait for its service"))
        try:
            return self.call(update, job)
        finally:
            if self._asks:
                self._places.release()

    def call(self, update: StatusUpdate, job: Job) -> "Attempt":
        """Call the handler. Whatever it raises is caught, so that none stops another."""
        started, error = time.monotonic(), None
        try:
            self.handler(update)
        except Exception as raised:
            error = raised
        attempt = Attempt(self, job, error, time.monotonic() - started)
        if error:
            self._log(update, error, attempt.seconds)
        self._note(error, attempt.seconds)
        return attempt

    def asked_in(self) -> float | None:
        """Seconds until a service that is away is asked again; None where it is not away."""
        asked_at = self._asked_at
        return None if asked_at is None else max(asked_at - time.monotonic(), 0.0)

    def note_asking(self) -> None:
        """A service that is away is being asked: not again before it answers, or for a while."""
        with self._lock:
            if self._asked_at is not None:
                self._asked_at = time.monotonic() + current_app.config["ASK_EVERY"]

    def ask_now(self) -> None:
        """Let the worker ask a service that is away, and look for work, at once."""
        with self._lock:
            self._asked_at = self._asked_at and time.monotonic()
        self.work.set()

    def take(self, update_id: int) -> None:
        """Note that this process has the handler's job on an update in hand, until it is released."""
        with self._lock:
            self._in_hand.add(update_id)

    def release(self, update_id: int) -> None:
        with self._lock:
            self._in_hand.discard(update_id)

    def in_hand(self) -> list[int]:
        """The updates whose jobs this process must not lease again, however long ago their leases ran out."""
        with self._lock:
            return list(self._in_hand)

    def _note(self, error: Exception | None, seconds: float) -> None:
        """Learn from an attempt how the service is: only what the service itself did says anything of it."""
        if not self._asks or not isinstance(error, Retry | GiveUp | None) or isinstance(error, Deferred):
            return
        with self._lock:
            self.reason = str(error or "")
            if isinstance(error, Unavailable):
                self._failed(error)
                return
            self._slow = isinstance(error, OutOfPatience) or seconds > current_app.config["SLOW_AFTER"]
            if isinstance(error, OutOfPatience):
                return
            if self._asked_at is not None:
                logger.info("its service is back", extra={"handler": self.name})
                self.work.set()
            self._failures, self._asked_at, self.away_since = 0, None, None

    def _failed(self, error: Unavailable) -> None:
        self._failures += 1
        if not error.after and self._failures < current_app.config["AWAY_AFTER"]:
            return
        if self._asked_at is None:
            logger.warning("its service is away", extra={"handler": self.name, "error": self.reason})
            self.away_since = time.time()
        self._asked_at = time.monotonic() + (error.after or current_app.config["ASK_EVERY"])

    def _log(self, update: StatusUpdate, error: Exception, seconds: float) -> None:
        extra: dict[str, Any] = {"call_id": update.call.id, "status": update.call.status, "handler": self.name}
        extra |= {"error": str(error), "ms": round(1000 * seconds)}
        if isinstance(error, Deferred):
            logger.info("handler put off", extra=extra)
        elif isinstance(error, Retry | GiveUp | StoreError):
            logger.warning("handler failed", extra=extra)
        else:
            logger.error("handler failed", exc_info=error, extra=extra)


class Attempt(NamedTuple):
    """One call of a lane's handler for the `job` that was leased; `error` is None if its work is done."""

    lane: Lane
    job: Job
    error: Exception | None
    seconds: float = 0.0


def init_app(app: Flask) -> None:
    app.extensions["lanes"] = [Lane(handler) for handler in active_handlers(app.config)]


def get_lanes() -> list[Lane]:
    """The lanes of the handlers that are on, in the order of HANDLERS."""
    lanes: list[Lane] = current_app.extensions["lanes"]
    return lanes


def get_lane(name: str) -> Lane | None:
    """The lane of the handler with this name; None where there is no such handler, or it is off."""
    return next((lane for lane in get_lanes() if lane.name == name), None)
