"""How a handler asks a service: few at a time, within the deadline, and not while the service is out of order."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from queue import SimpleQueue
from typing import Any

from flask import current_app, g

from config import INTERNALS
from handlers.breaker import CircuitBreaker, Deferred, Unavailable

PROVIDER = "provider"  # asked by no handler
MOST_AT_ONCE = INTERNALS["OUTBOUND_SLOTS"] + INTERNALS["RETRIES_AT_ONCE"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """The call of a handler that goes on in a thread, as `g.attempt`: what `post` has to know of it.

    `deadline`: of time.monotonic(); `retrying`: no request waits for it; `forced`: its service is asked although the
    handler is paused.
    """

    handler: str
    deadline: float = inf
    retrying: bool = True
    forced: bool = False


class Exchange:
    """A request to a service, and until when (of time.monotonic()) its answer is waited for."""

    def __init__(self, end: float):
        self.end = end
        self.connection: Any = None  # of urllib3, once there is one
        self.is_over = self.is_late = False

    def cut(self) -> None:
        self.is_late = True
        with suppress(OSError, AttributeError):  # not connected yet, or not any more
            self.connection.sock.shutdown(socket.SHUT_RDWR)


class Service:
    """What one handler asks, as this process sees it: a circuit breaker, and limits of its own, so that a service that
    hangs holds up nobody else's."""

    def __init__(self, handler: str):
        self.breaker = CircuitBreaker(handler)
        self.slots = threading.BoundedSemaphore(INTERNALS["OUTBOUND_SLOTS"])
        self.pool = ThreadPoolExecutor(
            INTERNALS["OUTBOUND_SLOTS"] + INTERNALS["RETRIES_AT_ONCE"], f"outbound-{handler}"
        )
        self._exchanges: SimpleQueue[Exchange] = SimpleQueue()
        self._lock, self._ends_late = threading.Lock(), None

    def ends_if_late(self, exchange: Exchange) -> None:
        """Cut the exchange's connection when its time is over: reads are bounded each, so a service that answers a byte
        at a time could go on for hours. A thread that watches them all costs less than one for each."""
        self._exchanges.put(exchange)
        if self._ends_late is None:
            with self._lock:
                if self._ends_late is None:
                    self._ends_late = threading.Thread(target=self._end_late, daemon=True)
                    self._ends_late.start()

    def _end_late(self) -> None:
        while exchange := self._exchanges.get():  # the one that ends first
            if not exchange.is_over:
                time.sleep(max(0, exchange.end - time.monotonic()))
            if not exchange.is_over:
                exchange.cut()


def current_attempt() -> Attempt:
    return g.get("attempt") or Attempt(PROVIDER)


def service(handler: str) -> Service:
    """The service that the handler of this name asks."""
    services = current_app.extensions["services"]
    return services.get(handler) or services.setdefault(handler, Service(handler))


def call(function: Callable[[], Any]) -> Any:
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
            asked.breaker.note(error)
            raise
        asked.breaker.note(None)
        return answer
    finally:
        if not attempt.retrying:
            asked.slots.release()


def bounded(function: Callable[[], Any], undo: Callable[[Any], None] = lambda _: None) -> Any:
    """What `function` returns within OUTBOUND_TIMEOUT, for what knows no bound itself, as the look-up of a name.

    Raises what `function` does, and Unavailable when its time is over; what it returns after that is undone.
    """
    future = service(current_attempt().handler).pool.submit(function)
    try:
        return future.result(current_app.config["OUTBOUND_TIMEOUT"])
    except TimeoutError:
        if future.done():
            raise

        def undone(late: Future) -> None:
            if not late.exception():
                undo(late.result())

        future.add_done_callback(undone)
        raise Unavailable("no answer in time") from None
