"""Requests that were refused, and why: counted by the hour and reason."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict

from config import WEBHOOK_PATH
from stores.database import Database
from stores.records import RefusalCount

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


def add(db: Database, counts: Iterable[RefusalCount]) -> None:
    """Add to what was refused for each reason in the hour that its `latest` is in."""
    for count in counts:
        db.execute(
            "INSERT INTO refusals AS r (hour, reason, times, latest) VALUES (:hour, :reason, :times, :latest)"
            " ON CONFLICT (hour, reason) DO UPDATE SET times = r.times + excluded.times, latest = excluded.latest",
            {"hour": _hour(count.latest), **asdict(count)},
        )


def since(db: Database, moment: float) -> list[RefusalCount]:
    """What was refused for each reason, from the hour that `moment` is in; most often first."""
    rows = db.query(
        "SELECT reason, sum(times), max(latest) FROM refusals WHERE hour >= :hour GROUP BY reason"
        " ORDER BY sum(times) DESC, reason",
        {"hour": _hour(moment)},
    )
    return [RefusalCount(reason, int(times), latest) for reason, times, latest in rows]


def _hour(moment: float) -> int:
    return int(moment // 3600) * 3600


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
        with self._lock:
            times = self._times.copy()
        add(db, [RefusalCount(reason, number, now) for reason, number in times.items()])
        with self._lock:
            self._times -= times
