"""Refused updates, counted in memory: a flood of them costs the store one write a second a process."""

import logging
import threading
from collections import Counter

from flask import current_app

from stores import Refused, StoreError, get_store

NOT_KEPT = "could not be kept"
REASONS = (  # what the text of a refusal begins with; nothing else is counted, and no sender's text is kept
    "no secret is set here",
    "unsigned",
    "malformed X-Webhook-Timestamp",
    "malformed X-Webhook-Signature",
    "wrong signature",
    "stale",
    "too large",
    "the body stopped halfway",
    "not JSON",
    "not a status update",
    NOT_KEPT,
)
FLUSH_EVERY = 1.0  # seconds

logger = logging.getLogger(__name__)


class Refusals:
    """One process's counts since they were last written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: Counter[str] = Counter()
        self._latest: dict[str, float] = {}
        self._flushed_at = 0.0

    def count(self, reason: str, now: float) -> None:
        with self._lock:
            self._times[reason] += 1
            self._latest[reason] = now

    def flush(self, now: float) -> None:
        """Write the counts into the store unless that was done within a second; what it does not take is kept."""
        with self._lock:
            if not self._times or abs(now - self._flushed_at) < FLUSH_EVERY:
                return
            times, latest, self._flushed_at = self._times, self._latest, now
            self._times, self._latest = Counter(), {}
        try:
            get_store().count_refusals([Refused(reason, n, latest[reason]) for reason, n in times.items()])
        except StoreError as error:
            logger.warning("refusals not counted yet", extra={"error": str(error)})
            with self._lock:
                self._times += times
                self._latest = latest | self._latest


def count_refusal(text: str, now: float) -> None:
    """Count an update that is refused with `text` at `now`."""
    reason = next((each for each in REASONS if text.startswith(each)), None)
    if reason is None:
        return
    refusals: Refusals = current_app.extensions["refusals"]
    refusals.count(reason, now)
    if reason != NOT_KEPT:  # the sender has waited for the store long enough
        refusals.flush(now)
