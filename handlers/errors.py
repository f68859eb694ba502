"""What a handler raises when its work is not done."""


class Retry(Exception):
    """The work was not done: try again in `after` seconds, an hour at most, or when the schedule says."""

    def __init__(self, reason: str = "", after: float | None = None):
        super().__init__(reason)
        self.after = None if after is None else float(after)


class Unavailable(Retry):
    """The service's own failure: no connection, no answer in time, 5xx or 429. `after` is its Retry-After."""


class OutOfPatience(Retry):
    """A request has waited for the service as long as it may: the service is slow, and has perhaps done the work."""


class Deferred(Retry):
    """The work was not tried, which costs no attempt."""


class NotFound(Retry):
    """The service knows no such thing, or not yet: n8n answers so for a moment after its start."""


class DoneBefore(Retry):
    """The service says that it has this already. Where it was tried before, the work is done."""


class GiveUp(Exception):
    """Trying again cannot help; the text says what to change."""
