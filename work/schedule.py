"""What becomes of a job after an attempt: pure functions."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from handlers.errors import Deferred, DoneBefore, GiveUp
from stores.records import Job


def after_attempt(
    job: Job, error: Exception | None, now: float, config: Mapping[str, Any], asked_in: float | None = None
) -> Job:
    """The job after an attempt that ended at `now`: done where there was no `error`, failed for good after GiveUp or a
    day of attempts, else pending. `asked_in`: where its service is away, seconds until it is asked again."""
    if error is None or (isinstance(error, DoneBefore) and job.attempts):
        return replace(job, state="done", due_at=None, attempts=job.attempts + 1, done_at=now)
    reason = str(error) or type(error).__name__
    if isinstance(error, Deferred):
        return replace(job, state="pending", due_at=now + (error.after or 0), error=job.error or reason)
    due_at, first_tried_at = now + _pause(job, error, config, asked_in), job.first_tried_at or now
    job = replace(job, attempts=job.attempts + 1, first_tried_at=first_tried_at, error=reason)
    if isinstance(error, GiveUp) or now - first_tried_at >= config["GIVE_UP_AFTER"]:
        return replace(job, state="failed", due_at=None, done_at=now)
    return replace(job, state="pending", due_at=due_at)


def _pause(job: Job, error: Exception, config: Mapping[str, Any], asked_in: float | None) -> float:
    """Seconds until the next attempt: as the error says, when the service is asked again, or ever longer."""
    if (after := getattr(error, "after", None)) is not None:
        return float(min(after, config["RETRY_LONGEST"]))
    if asked_in is not None:
        return asked_in
    doubled = config["RETRY_FIRST"] * 2 ** min(job.attempts, 16)
    return float(min(doubled, config["RETRY_LONGEST"]) * random.uniform(0.8, 1.2))
