"""How a handler asks a service: few at a time, within the deadline, and not while the service is out of order."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from math import inf
from typing import Any

from flask import current_app, g

from config import INTERNALS
from handlers.breaker import CircuitBreaker, Deferred, Unavailable

PROVIDER = "provider"  # asked by no handler
MOST_AT_ONCE = INTERNALS["OUTBOUND_SLOTS"] + INTERNALS["RETRIES_AT_ONCE"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One run of a handler, kept as `g.attempt`: `post` and `get` take their limits from it.

    `deadline`: of time.monotonic(); `retrying`: no request waits for it; `forced`: its service is asked although the
    handler is paused.
    """

    handler: str
    deadline: float = inf
    retrying: bool = True
    forced: bool = False


class Service:
    """The outside service that one handler asks: its circuit breaker and its own limits, so that a service that hangs
    holds up no other handler."""

    def __init__(self, handler: str):
        self.breaker = CircuitBreaker(handler)
        self.slots = threading.BoundedSemaphore(INTERNALS["OUTBOUND_SLOTS"])
        self.pool = ThreadPoolExecutor(MOST_AT_ONCE, f"outbound-{handler}")


def current_attempt() -> Attempt:
    return g.get("attempt") or Attempt(PROVIDER)


def service(handler: str) -> Service:
    """The service that the handler of this name asks."""
    services = current_app.extensions["services"]
    return services.get(handler) or services.setdefault(handler, Service(handler))


def ask(function: Callable[[], Any]) -> Any:
    """What `function` returns, which asks the service of the handler that is being called.

    Raises what `function` does, and Deferred where the handler is paused, no time is left, or too many requests wait
    for the service already.
    """
    attempt = current_attempt()
    asked = service(attempt.handler)
    if attempt.deadline - time.monotonic() < current_app.config["OUTBOUND_TIMEOUT"]:
        raise Deferred("no time left in this request")  # an answer that we cut off would not be the service's fault
    if not attempt.retrying and not asked.slots.acquire(blocking=False):
        raise Deferred("too many requests wait for this service")
    try:
        asked.breaker.admit(retrying=attempt.retrying, forced=attempt.forced)
        try:
            answer = function()
        except Exception as error:
            asked.breaker.record_result(error)
            raise
        asked.breaker.record_result(None)
        return answer
    finally:
        if not attempt.retrying:
            asked.slots.release()


def with_timeout(function: Callable[[], Any]) -> Any:
    """What `function` returns within OUTBOUND_TIMEOUT, for what knows no bound itself, as the look-up of a name.

    Raises what `function` does, and Unavailable when its time is over.
    """
    future = service(current_attempt().handler).pool.submit(function)
    if not wait([future], current_app.config["OUTBOUND_TIMEOUT"]).done:
        future.cancel()
        raise Unavailable("no answer in time")
    return future.result()
