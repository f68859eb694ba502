"""Requests that were refused, and why: counted by the hour and reason."""

import threading
from collections import Counter
from typing import Any

from config import WEBHOOK_PATH
from stores.database import Database

NOT_AN_UPDATE, NOT_JSON, NOT_KEPT, STALE = "not a status update", "not JSON", "could not be kept", "stale"
WRONG_PATH, ENCODED = "wrong path", "encoded"
_STRANGE = "The provider sends no such requests: find out who does, or which proxy changes them."
# Why a request is refused: the status code, and what whoever runs this receiver has to do. Only these are counted, and
# no sender's text is kept.
REASONS = {
    "no secret is set here": (401, "Set WEBHOOK_SECRET to the provider's webhook_secret."),
    "unsigned": (401, "Set webhook_secret on every assistant at the provider."),
    "malformed X-Webhook-Timestamp": (401, _STRANGE),
    "malformed X-Webhook-Signature": (401, _STRANGE),
    "wrong signature": (401, "WEBHOOK_SECRET must be every assistant's webhook_secret; commas separate several."),
    STALE: (401, "Set the clock right, or raise WEBHOOK_TOLERANCE. The log has these updates, for flask import."),
    WRONG_PATH: (404, f"The provider's webhook_url has to end with {WEBHOOK_PATH}. The log has these updates."),
    "too large": (413, "The provider's updates are far smaller: look who sends them."),
    ENCODED: (415, "The sender, or a proxy, compresses what it posts: turn that off."),
    "the body stopped halfway": (400, "The network in front of this receiver cuts requests off."),
    NOT_JSON: (400, _STRANGE),
    NOT_AN_UPDATE: (422, "The log names the wrong fields, and has these updates."),
    NOT_KEPT: (503, "The log says why, and has these updates, for flask import."),
}


def add(db: Database, reason: str, times: int, moment: float) -> None:
    """Add to what was refused for a reason in the hour that `moment` is in, so many times."""
    db.execute(
        "INSERT INTO refusals AS r (hour, reason, times, latest) VALUES (:hour, :reason, :times, :latest)"
        " ON CONFLICT (hour, reason) DO UPDATE SET times = r.times + excluded.times, latest = excluded.latest",
        {"hour": int(moment // 3600) * 3600, "reason": reason, "times": times, "latest": moment},
    )


def since(db: Database, moment: float) -> list[tuple[Any, ...]]:
    """What was refused since the hour that `moment` is in: each reason, how often, and when last; most often first."""
    return db.query(
        "SELECT reason, CAST(sum(times) AS BIGINT), max(latest) FROM refusals WHERE hour > :moment - 3600"
        " GROUP BY reason ORDER BY sum(times) DESC, reason",
        {"moment": moment},
    )


class RefusalCounter:
    """One process's counts since they were last written. `not_kept_at`: when it last could not keep an update."""

    def __init__(self) -> None:
        self.not_kept_at = 0.0
        self._lock = threading.Lock()
        self._times: Counter[str] = Counter()

    def count(self, reason: str) -> None:
        with self._lock:
            self._times[reason] += 1

    def flush(self, db: Database, now: float) -> None:
        """Write the counts into the store, as of `now`. Raises StoreError; they are written the next time then."""
        for reason, times in self._times.copy().items():
            add(db, reason, times, now)
            with self._lock:
                self._times -= Counter({reason: times})
