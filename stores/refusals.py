"""Requests that were refused, and why: counted by the hour and reason."""

import logging
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

from stores.database import Database
from stores.records import RefusalCount, StoreError, hour_of

NOT_AN_UPDATE, NOT_KEPT, STALE = "not a status update", "could not be kept", "stale"
TOO_MANY_GUESSES = "too many wrong passwords"
_STRANGE = "The provider sends no such requests: find out who does, or which proxy changes them."
# Why a request is refused: the status code, and what whoever runs this receiver has to do. Only these are counted, and
# no sender's text is kept.
REASONS = {
    "no secret is set here": (401, "Set WEBHOOK_SECRET to the provider's webhook_secret."),
    "unsigned": (401, "Set webhook_secret on every assistant at the provider."),
    "malformed X-Webhook-Timestamp": (401, _STRANGE),
    "malformed X-Webhook-Signature": (401, _STRANGE),
    "wrong signature": (
        401,
        "WEBHOOK_SECRET must be the webhook_secret of every assistant at the provider; commas separate several.",
    ),
    STALE: (
        401,
        "Set this machine's clock right, or raise WEBHOOK_TOLERANCE. The log has these updates, for flask import.",
    ),
    "too large": (413, "The provider's updates are far smaller: look who sends them."),
    "the body stopped halfway": (400, "The network in front of this receiver cuts requests off."),
    "not JSON": (400, _STRANGE),
    NOT_AN_UPDATE: (422, "The log names the wrong fields, and has these updates whole."),
    TOO_MANY_GUESSES: (
        429,
        "Somebody guesses DASHBOARD_PASSWORD: make it long and random. Ten wrong ones from an address, or a hundred in"
        " all, close the dashboard for the rest of the minute.",
    ),
    NOT_KEPT: (503, "The log says why, and has these updates whole."),
}
FLUSH_EVERY = 1.0  # seconds

logger = logging.getLogger(__name__)


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


class RefusalCounter:
    """One process's counts since they were last written: a flood of refused requests costs one write a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: Counter[str] = Counter()
        self._latest: dict[str, float] = {}
        self._flushed_at = 0.0

    def count(self, reason: str, now: float) -> None:
        with self._lock:
            self._times[reason] += 1
            self._latest[reason] = now

    def flush(self, db: Database, now: float) -> None:
        """Write the counts into the store unless that was done within a second; what it does not take is kept."""
        with self._lock:
            if not self._times or abs(now - self._flushed_at) < FLUSH_EVERY:
                return
            times, latest, self._flushed_at = self._times, self._latest, now
            self._times, self._latest = Counter(), {}
        try:
            add(db, [RefusalCount(reason, n, latest[reason]) for reason, n in times.items()])
        except StoreError as error:
            logger.warning("refusals not counted yet", extra={"error": str(error)})
            with self._lock:
                self._times += times
                self._latest = latest | self._latest
