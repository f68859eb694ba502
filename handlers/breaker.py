"""How a handler says that its work is not done, and the circuit breaker that pauses it while its service fails."""

import logging
import threading

from flask import current_app

from schemas.times import clock

logger = logging.getLogger(__name__)


class Retry(Exception):
    """The work was not done: try again in `after` seconds, an hour at most, or when the schedule says."""

    def __init__(self, reason: str = "", after: float | None = None):
        super().__init__(reason)
        self.after = after


class Unavailable(Retry):
    """The service's own failure: no connection, no answer in time, 5xx or 429."""


class Deferred(Retry):
    """The work was not even tried: it costs no attempt."""


class GiveUp(Exception):
    """Trying again cannot help; the text says what to change."""


class CircuitBreaker:
    """Whether one handler's service is out of order, as far as this process knows: then only retries ask it, one at a
    time and at intervals, until it answers.

    `paused_at`: since when, in Unix seconds, `probe_at`: when it is asked next; both None where it is not paused.
    """

    def __init__(self, handler: str):
        self.handler = handler
        self.paused_at: float | None = None
        self.probe_at: float | None = None
        self._failures, self._reason = 0, ""
        self._lock = threading.Lock()

    def admit(self, *, retrying: bool, forced: bool = False) -> None:
        """Return if the service may be asked now, else raise Deferred with what it answered last."""
        with self._lock:
            if self.probe_at is None or forced:
                return
            now = clock()
            if not retrying or now < self.probe_at:
                raise Deferred(self._reason)
            self.probe_at = now + current_app.config["PROBE_EVERY"]  # this is the probe, and no other

    def record_result(self, error: Exception | None) -> None:
        """Start a pause, prolong it or end it, by how a request to the service went."""
        with self._lock:
            if isinstance(error, Unavailable):
                self._failed(error)
            elif error is None or isinstance(error, Retry | GiveUp) and not isinstance(error, Deferred):
                if self.paused_at is not None:
                    logger.info("pause over", extra={"handler": self.handler})
                self._failures, self.paused_at, self.probe_at = 0, None, None

    def _failed(self, error: Unavailable) -> None:
        self._failures, self._reason = self._failures + 1, str(error)
        if error.after is None and self._failures < current_app.config["PAUSE_AFTER"]:
            return
        if self.paused_at is None:
            self.paused_at = clock()
            logger.warning("handler paused", extra={"handler": self.handler, "error": self._reason})
        self.probe_at = clock() + (current_app.config["PROBE_EVERY"] if error.after is None else error.after)
