"""Which calls are on right now, for the dashboard."""

from schemas.status_update import StatusUpdate
from stores import get_store


def track_call(update: StatusUpdate) -> None:
    """Done already where this thread has just recorded the update."""
    get_store().track(update)
