"""How handlers ask other services: within the deadline, few at a time, and not while a service is out of order."""

import json as jsonlib
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any

import requests
import urllib3
from flask import current_app, g
from requests.adapters import HTTPAdapter

from config import LIMITS, VERSION
from handlers.breaker import CircuitBreaker, GiveUp, NotNow, Retry, Unavailable

__all__ = ["Answer", "GiveUp", "NotNow", "Retry", "Unavailable", "call", "get", "post", "service"]

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


class Service:
    """What one handler asks, as this process sees it: a circuit breaker, and threads of its own, so that a service that
    hangs takes none of another's."""

    def __init__(self, handler: str):
        self.breaker = CircuitBreaker(handler)
        self._slots = threading.BoundedSemaphore(LIMITS["OUTBOUND_SLOTS"])
        self._pool = ThreadPoolExecutor(LIMITS["OUTBOUND_SLOTS"] + LIMITS["RETRIES_AT_ONCE"], f"outbound-{handler}")

    def run(self, function: Callable[[], Any], timeout: float, stop: Callable[[], None], *, retrying: bool) -> Any:
        """What `function` returns within `timeout` seconds; after that `stop` is called to end it. Raises Unavailable,
        and NotNow where too many requests wait for it already; retries have threads of their own."""
        if not retrying and not self._slots.acquire(blocking=False):
            raise NotNow("too many requests wait for this service")
        future = self._pool.submit(function)
        if not retrying:
            future.add_done_callback(lambda _: self._slots.release())
        try:
            return future.result(timeout)
        except TimeoutError:
            stop()
            raise Unavailable("no answer in time") from None


def service(handler: str) -> Service:
    """The service that the handler of this name asks."""
    services = current_app.extensions["services"]
    return services.get(handler) or services.setdefault(handler, Service(handler))


def call(function: Callable[[], Any], stop: Callable[[], None] = lambda: None) -> Any:
    """What `function` returns, which asks the service of the handler that is being called.

    Raises what `function` does, NotNow where the handler is paused or no time is left, and Unavailable where the answer
    takes longer than OUTBOUND_TIMEOUT; `stop` is called then, to end the function.
    """
    asked, retrying = service(g.get("handler", PROVIDER)), g.get("retrying", True)
    timeout = current_app.config["OUTBOUND_TIMEOUT"]
    if g.get("deadline", inf) - time.monotonic() < timeout:  # an answer that we cut off would not be its fault
        raise NotNow("no time left in this request")
    asked.breaker.admit(retrying=retrying, forced=g.get("forced", False))
    try:
        answer = asked.run(function, timeout, stop, retrying=retrying)
    except Exception as error:
        asked.breaker.note(error)
        raise
    asked.breaker.note(None)
    return answer


def post(url: str, json: Any, headers: dict[str, str] | None = None) -> Answer:
    """Post `json` to `url` and return the answer, which is a 2xx.

    Raises Unavailable, GiveUp on 404 and 410, Retry on any other answer, and NotNow. No redirect is followed: it would
    turn the POST into a GET. No exception's text has the URL or a header in it, as they may be secret.
    """
    return _exchange("POST", url, headers, json)


def get(url: str, headers: dict[str, str] | None = None) -> Answer:
    """The 2xx answer at `url`. Raises what `post` does."""
    return _exchange("GET", url, headers)


def _exchange(method: str, url: str, headers: dict[str, str] | None, json: Any = None) -> Answer:
    headers = {"User-Agent": f"call-status-receiver/{VERSION}", **(headers or {})}
    request = requests.Request(method, url, headers, json=json).prepare()
    used: list[urllib3.connection.HTTPConnection] = []
    return call(partial(_send, request, current_app.config["OUTBOUND_TIMEOUT"], used), partial(_cut, used))


def _send(request: requests.PreparedRequest, timeout: float, used: list[urllib3.connection.HTTPConnection]) -> Answer:
    """The answer to `request`. The connection is in `used` while it is waited for."""
    _this_thread.used = used
    try:
        with closing(_adapter.send(request, stream=True, timeout=timeout)) as answer:
            body = b""
            while chunk := answer.raw.read(LONGEST_ANSWER - len(body), decode_content=True):
                body += chunk
    except (requests.Timeout, urllib3.exceptions.TimeoutError):
        raise Unavailable("no answer in time") from None
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise Unavailable(f"no connection or no valid answer ({type(error).__name__})") from None
    text, reason = body.decode("utf-8", "replace"), f"answered {answer.status_code}"
    if answer.status_code == 429 or answer.status_code >= 500:
        raise Unavailable(reason, _retry_after(answer.headers.get("Retry-After", "")))
    if answer.status_code in (404, 410):
        raise GiveUp(f"{reason}: {text[:100]}")
    if not 200 <= answer.status_code < 300:
        raise Retry(reason)
    return Answer(answer.status_code, text)


def _retry_after(value: str) -> float | None:
    """Seconds from now, an hour at most, from either form of RFC 9110's Retry-After; None where it is neither."""
    try:
        return min(urllib3.Retry().parse_retry_after(value), LONGEST_RETRY_AFTER)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


def _cut(used: list[urllib3.connection.HTTPConnection]) -> None:
    """End the exchange: requests bounds each read, so a service that answers a byte at a time could go on for hours."""
    for connection in used:
        with suppress(OSError, AttributeError):  # not connected yet, or not any more
            connection.sock.shutdown(socket.SHUT_RDWR)


_this_thread = threading.local()


class _HTTPPool(urllib3.HTTPConnectionPool):
    def _get_conn(self, timeout: float | None = None) -> Any:
        connection = super()._get_conn(timeout)
        _this_thread.used.append(connection)
        return connection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    _get_conn = _HTTPPool._get_conn


# What a requests session is built on: it keeps connections open, for all threads, and knows no redirect or cookie.
_adapter = HTTPAdapter(pool_maxsize=LIMITS["OUTBOUND_SLOTS"] + LIMITS["RETRIES_AT_ONCE"])
_adapter.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
