"""HTTP, as handlers use it: `post` and `get`, which raise what decides about the next attempt."""

import json as jsonlib
import socket
import ssl
import time
from contextlib import closing
from functools import partial
from math import inf
from typing import Any

import certifi
import urllib3
from flask import current_app

from config import VERSION
from handlers.breaker import Deferred, GiveUp, Retry, Unavailable
from handlers.service import MOST_AT_ONCE, ask, with_timeout

__all__ = ["Deferred", "GiveUp", "Retry", "Unavailable", "get", "post"]

LONGEST_RETRY_AFTER = 3600.0
LONGEST_ANSWER = 64 * 1024  # bytes, unpacked


def post(url: str, json: Any, headers: dict[str, str] | None = None) -> str:
    """Post `json` to `url`. Returns the answer's text, the first 64 kB of it, where it is a 2xx.

    Raises Unavailable, GiveUp on 404 and 410, Retry on any other answer, and Deferred. No redirect is followed: it
    would turn the POST into a GET. No exception's text has the URL or a header in it, as they may be secret.
    """
    headers = {"Content-Type": "application/json", **(headers or {})}
    return ask(partial(_request, "POST", url, headers, jsonlib.dumps(json).encode()))


def get(url: str, headers: dict[str, str] | None = None) -> str:
    """The text of the 2xx answer at `url`. Raises what `post` does."""
    return ask(partial(_request, "GET", url, headers or {}))


def _request(method: str, url: str, headers: dict[str, str], body: bytes | None = None) -> str:
    headers = {"User-Agent": f"call-status-receiver/{VERSION}", **headers}
    options = {"timeout": urllib3.Timeout(current_app.config["OUTBOUND_TIMEOUT"]), "preload_content": False}
    try:
        with closing(_http.urlopen(method, url, body=body, headers=headers, **options, **_ONCE)) as answer:
            read = b""
            while chunk := answer.read(LONGEST_ANSWER - len(read), decode_content=True):
                read += chunk
    except (urllib3.exceptions.HTTPError, OSError) as error:
        refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # a TimeoutError, too
        if isinstance(error, urllib3.exceptions.TimeoutError) and not refused:
            raise Unavailable("no answer in time") from None
        raise Unavailable(f"no connection or no valid answer ({type(error).__name__})") from None
    text, reason = read.decode("utf-8", "replace"), f"answered {answer.status}"
    if answer.status == 429 or answer.status >= 500:
        raise Unavailable(reason, _retry_after(answer.headers.get("Retry-After", "")))
    if answer.status in (404, 410):
        raise GiveUp(f"{reason}: {text[:100]}")
    if not 200 <= answer.status < 300:
        raise Retry(reason)
    return text


def _retry_after(value: str) -> float | None:
    """Seconds from now, an hour at most, from either form of RFC 9110's Retry-After; None where it is neither."""
    try:
        return min(urllib3.Retry().parse_retry_after(value), LONGEST_RETRY_AFTER)
    except (urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return None


class _ReadsUntil:
    """A socket whose reads all end at `end`, of time.monotonic(). Else each has the whole time-out, and a service that
    sends a byte at a time could hold its thread for hours."""

    end = inf

    def recv_into(self, *args: Any) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.settimeout(left)
        return super().recv_into(*args)


class _Socket(_ReadsUntil, socket.socket):
    pass


class _TLSSocket(_ReadsUntil, ssl.SSLSocket):
    pass


class _InTime:
    """A connection that is made, TLS and all, and read from within its time-out."""

    def _new_conn(self) -> socket.socket:
        started, timeout = time.monotonic(), self.timeout
        sock = _Socket(fileno=with_timeout(super()._new_conn).detach())
        sock.settimeout(max(started + timeout - time.monotonic(), 0.001))
        return sock

    def getresponse(self) -> Any:
        self.sock.end = time.monotonic() + self.timeout  # what is left of it
        return super().getresponse()


class _HTTPConnection(_InTime, urllib3.connection.HTTPConnection):
    pass


class _HTTPSConnection(_InTime, urllib3.connection.HTTPSConnection):
    pass


class _HTTPPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


def _tls_context() -> ssl.SSLContext:
    context = urllib3.util.create_urllib3_context()
    context.load_verify_locations(certifi.where())
    context.sslsocket_class = _TLSSocket
    return context


# What requests is built on, and half its cost; it keeps connections open, for all threads.
_http = urllib3.PoolManager(maxsize=MOST_AT_ONCE, ssl_context=_tls_context())
_http.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
_ONCE = {"retries": False, "redirect": False}
