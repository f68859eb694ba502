"""How handlers post to other services: within the deadline, and saying whether to try again."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from math import inf
from typing import Any

import requests
from flask import current_app, g
from requests.adapters import HTTPAdapter

from config import LIMITS, VERSION

LONGEST_RETRY_AFTER = 3600.0

# What a session is built on: it keeps connections open, for all threads, and knows no redirect, cookie or proxy.
_adapter = HTTPAdapter(pool_maxsize=LIMITS["OUTBOUND_SLOTS"])


class Retry(Exception):
    """The work was not done: try again in `after` seconds, or when the schedule says."""

    def __init__(self, reason: str = "", after: float | None = None):
        super().__init__(reason)
        self.after = after


class Unavailable(Retry):
    """The service's own failure: no connection, no answer in time, 5xx or 429."""


class NotNow(Retry):
    """The work was not even tried: it costs no attempt."""


class GiveUp(Exception):
    """Trying again cannot help; the text says what to change."""


class Slots:
    """Runs so many calls at a time and no more, each in a thread of its own and for so long and no longer.

    requests bounds each read and no name look-up, so a service that answers a byte at a time, or a name server that
    does not, could hold up an update for minutes.
    """

    def __init__(self, slots: int):
        self._free = threading.BoundedSemaphore(slots)
        self._pool = ThreadPoolExecutor(slots, "outbound")

    def run(self, function: Callable[[], Any], timeout: float) -> Any:
        """What `function` returns within `timeout` seconds. Raises NotNow without a free slot, else Unavailable."""
        if not self._free.acquire(blocking=False):
            raise NotNow("too many requests wait for services")
        future = self._pool.submit(function)
        future.add_done_callback(lambda _: self._free.release())
        try:
            return future.result(timeout)
        except TimeoutError:
            raise Unavailable("no answer in time") from None


def post(url: str, json: Any, headers: dict[str, str] | None = None) -> requests.Response:
    """Post `json` to `url` and return the answer, which is a 2xx.

    Raises Unavailable, GiveUp on 404 and 410, and Retry on any other answer. No redirect is followed: it would turn the
    POST into a GET. No exception's text has the URL or a header in it, as they may be secret.
    """
    return _exchange("POST", url, headers, json)


def get(url: str, headers: dict[str, str] | None = None) -> requests.Response:
    """The 2xx answer at `url`. Raises what `post` does."""
    return _exchange("GET", url, headers)


def _exchange(method: str, url: str, headers: dict[str, str] | None, json: Any = None) -> requests.Response:
    timeout = _time_left()
    send = partial(_send, method, url, json, headers, timeout)
    answer = current_app.extensions["outbound"].run(send, timeout)
    reason = f"answered {answer.status_code}"
    if answer.status_code == 429 or answer.status_code >= 500:
        raise Unavailable(reason, _retry_after(answer.headers.get("Retry-After", "")))
    if answer.status_code in (404, 410):
        raise GiveUp(f"{reason}: {answer.text[:100]}")
    if not 200 <= answer.status_code < 300:
        raise Retry(reason)
    return answer


def _send(method: str, url: str, json: Any, headers: dict[str, str] | None, timeout: float) -> requests.Response:
    headers = {"User-Agent": f"call-status-receiver/{VERSION}", **(headers or {})}
    try:
        answer = _adapter.send(requests.Request(method, url, headers, json=json).prepare(), timeout=timeout)
        _ = answer.content  # read here and now
        return answer
    except requests.Timeout:
        raise Unavailable("no answer in time") from None
    except requests.RequestException as error:
        raise Unavailable(f"no connection or no valid answer ({type(error).__name__})") from None


def _time_left() -> float:
    longest = current_app.config["OUTBOUND_TIMEOUT"]
    left = min(longest, g.get("deadline", inf) - time.monotonic())
    if left <= 0:
        raise NotNow("no time left in this request")
    return left


def _retry_after(value: str) -> float | None:
    """Seconds from now, an hour at most, from either form of RFC 9110's Retry-After; None where it is neither."""
    try:
        seconds = float(value) if value.isdecimal() else _seconds_until(parsedate_to_datetime(value))
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _seconds_until(moment: datetime) -> float:
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
