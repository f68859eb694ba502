"""HTTP, as handlers use it: `post` and `get`, which raise what decides about the next attempt."""

import json as jsonlib
import socket
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import certifi
import urllib3
from flask import current_app

from config import VERSION
from handlers.breaker import Deferred, GiveUp, Retry, Unavailable
from handlers.service import MOST_AT_ONCE, Exchange, ask, current_attempt, service, with_timeout

__all__ = ["Answer", "Deferred", "GiveUp", "Retry", "Unavailable", "get", "post"]

LONGEST_RETRY_AFTER = 3600.0
LONGEST_ANSWER = 64 * 1024  # bytes, unpacked


@dataclass(frozen=True, slots=True)
class Answer:
    """A service's answer, the first 64 kB of it."""

    status: int
    text: str

    def json(self) -> Any:
        return jsonlib.loads(self.text)


def post(url: str, json: Any, headers: dict[str, str] | None = None) -> Answer:
    """Post `json` to `url` and return the answer, which is a 2xx.

    Raises Unavailable, GiveUp on 404 and 410, Retry on any other answer, and Deferred. No redirect is followed: it
    would turn the POST into a GET. No exception's text has the URL or a header in it, as they may be secret.
    """
    headers = {"Content-Type": "application/json", **(headers or {})}
    return ask(partial(_exchange, "POST", url, headers, jsonlib.dumps(json).encode()))


def get(url: str, headers: dict[str, str] | None = None) -> Answer:
    """The 2xx answer at `url`. Raises what `post` does."""
    return ask(partial(_exchange, "GET", url, headers or {}))


def _exchange(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
    timeout = current_app.config["OUTBOUND_TIMEOUT"]
    exchange = _this_thread.exchange = Exchange(time.monotonic() + timeout)
    service(current_attempt().handler).watch(exchange)
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
    """A connection that its exchange knows of, and that is made within OUTBOUND_TIMEOUT."""

    def _tell(self) -> None:
        self.exchange = _this_thread.exchange
        self.exchange.connection = self

    def request(self, *args: Any, **kwargs: Any) -> None:
        self._tell()
        if self.exchange.is_late:  # agreeing on TLS took too long, and could not be cut
            raise TimeoutError
        super().request(*args, **kwargs)

    def _new_conn(self) -> socket.socket:
        self._tell()
        return with_timeout(super()._new_conn, undo=socket.socket.close)


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
    maxsize=MOST_AT_ONCE,
    cert_reqs="CERT_REQUIRED",
    ca_certs=certifi.where(),
)
_http.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
_ONCE = {"retries": False, "redirect": False, "preload_content": False}
