"""How handlers ask other services: within the deadline, few at a time, and not while a service is out of order."""

import json as jsonlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from queue import SimpleQueue
from typing import Any

import certifi
import urllib3
from flask import current_app, g

from config import LIMITS, VERSION
from handlers.breaker import CircuitBreaker, GiveUp, NotNow, Retry, Unavailable

__all__ = ["Answer", "Attempt", "GiveUp", "NotNow", "Retry", "Unavailable", "bounded", "call", "get", "post", "service"]

LONGEST_RETRY_AFTER = 3600.0
LONGEST_ANSWER = 64 * 1024  # bytes, unpacked
PROVIDER = "provider"  # asked by no handler


@dataclass(frozen=True, slots=True)
class Answer:
    """A service's answer, the first 64 kB of it."""

    status: int
    text: str

    def json(self) -> Any:
        return jsonlib.loads(self.text)


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
        self.connection: urllib3.connection.HTTPConnection | None = None
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
        self.slots = threading.BoundedSemaphore(LIMITS["OUTBOUND_SLOTS"])
        self.pool = ThreadPoolExecutor(LIMITS["OUTBOUND_SLOTS"] + LIMITS["RETRIES_AT_ONCE"], f"outbound-{handler}")
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


def service(handler: str) -> Service:
    """The service that the handler of this name asks."""
    services = current_app.extensions["services"]
    return services.get(handler) or services.setdefault(handler, Service(handler))


def call(function: Callable[[], Any]) -> Any:
    """What `function` returns, which asks the service of the handler that is being called.

    Raises what `function` does, and NotNow where the handler is paused, no time is left, or too many requests wait for
    the service already.
    """
    attempt: Attempt = g.get("attempt") or Attempt(PROVIDER)
    asked = service(attempt.handler)
    if attempt.deadline - time.monotonic() < current_app.config["OUTBOUND_TIMEOUT"]:
        raise NotNow("no time left in this request")  # an answer that we cut off would not be the service's fault
    if not attempt.retrying and not asked.slots.acquire(blocking=False):
        raise NotNow("too many requests wait for this service")
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
    future = service((g.get("attempt") or Attempt(PROVIDER)).handler).pool.submit(function)
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


def post(url: str, json: Any, headers: dict[str, str] | None = None) -> Answer:
    """Post `json` to `url` and return the answer, which is a 2xx.

    Raises Unavailable, GiveUp on 404 and 410, Retry on any other answer, and NotNow. No redirect is followed: it would
    turn the POST into a GET. No exception's text has the URL or a header in it, as they may be secret.
    """
    headers = {"Content-Type": "application/json", **(headers or {})}
    return call(partial(_exchange, "POST", url, headers, jsonlib.dumps(json).encode()))


def get(url: str, headers: dict[str, str] | None = None) -> Answer:
    """The 2xx answer at `url`. Raises what `post` does."""
    return call(partial(_exchange, "GET", url, headers or {}))


def _exchange(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
    timeout = current_app.config["OUTBOUND_TIMEOUT"]
    exchange = _this_thread.exchange = Exchange(time.monotonic() + timeout)
    service((g.get("attempt") or Attempt(PROVIDER)).handler).ends_if_late(exchange)
    headers = {"User-Agent": f"call-status-receiver/{VERSION}", **headers}
    try:
        with closing(_http.urlopen(method, url, body=body, headers=headers, timeout=timeout, **_ONCE)) as answer:
            read = b""
            while chunk := answer.read(LONGEST_ANSWER - len(read), decode_content=True):
                read += chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # a TimeoutError, too
        if exchange.is_late or isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
            raise Unavailable("no answer in time") from None
        raise Unavailable(f"no connection or no valid answer ({type(error).__name__})") from None
    finally:
        exchange.is_over = True
    text, reason = read.decode("utf-8", "replace"), f"answered {answer.status}"
    if answer.status == 429 or answer.status >= 500:
        raise Unavailable(reason, _retry_after(answer.headers.get("Retry-After", "")))
    if answer.status in (404, 410):
        raise GiveUp(f"{reason}: {text[:100]}")
    if not 200 <= answer.status < 300:
        raise Retry(reason)
    return Answer(answer.status, text)


def _retry_after(value: str) -> float | None:
    """Seconds from now, an hour at most, from either form of RFC 9110's Retry-After; None where it is neither."""
    try:
        return min(urllib3.Retry().parse_retry_after(value), LONGEST_RETRY_AFTER)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


_this_thread = threading.local()


class _Cuttable:
    """A connection that tells the exchange of it, and whose name look-up is bounded."""

    def request(self, *args: Any, **kwargs: Any) -> None:
        _this_thread.exchange.connection = self
        super().request(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        _this_thread.exchange.connection = self  # before TLS is agreed on, which can take as long
        return bounded(super()._new_conn, undo=socket.socket.close)


class _HTTPConnection(_Cuttable, urllib3.connection.HTTPConnection):
    pass


class _HTTPSConnection(_Cuttable, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


# What requests is built on, and half its cost; it keeps connections open, for all threads.
_http = urllib3.PoolManager(
    maxsize=LIMITS["OUTBOUND_SLOTS"] + LIMITS["RETRIES_AT_ONCE"], cert_reqs="CERT_REQUIRED", ca_certs=certifi.where()
)
_http.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
_ONCE = {"retries": False, "redirect": False, "preload_content": False}
