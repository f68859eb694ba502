"""HTTP, as handlers use it: `post` and `get`, which raise what decides about the next attempt."""

import time
from functools import lru_cache
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
from flask import current_app, g
from requests.utils import get_auth_from_url
from urllib3 import Retry as RetryPolicy
from urllib3.exceptions import HTTPError

from handlers.errors import DoneBefore, GiveUp, NotFound, OutOfPatience, Retry, Unavailable

POOL = 32  # connections to one host: as many as a lane has places
FRESH = 20.0  # seconds that a session is used: firewalls forget idle connections
LONGEST_ANSWER = 64 * 1024  # bytes, unpacked
LONGEST_REASON = 200  # characters of an answer that is not a 2xx


def post(url: str, json: Any, headers: dict[str, str] | None = None) -> str:
    """Post `json` to `url`. Returns the text of the 2xx answer, the first 64 kB of it.

    Raises Unavailable, DoneBefore on 409, GiveUp on 410, Retry on any other answer, and OutOfPatience. No redirect is
    followed: it would turn the POST into a GET. No exception's text has the URL or a header in it, as they may be
    secret.
    """
    return _request("POST", url, json=json, headers=headers)


def get(url: str, headers: dict[str, str] | None = None) -> str:
    """The text of the 2xx answer at `url`. Raises what `post` does."""
    return _request("GET", url, headers=headers)


@lru_cache(maxsize=1)
def _session(_period: int) -> requests.Session:
    """The session that all threads use in this period, of FRESH seconds."""
    session = requests.Session()
    session.headers["User-Agent"] = "call-status-receiver/1.0"
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=POOL))
    return session


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Leave our own Authorization as it is, which requests would replace by what a netrc has for the host."""
    return request


def _request(method: str, url: str, **options: Any) -> str:
    """The text of the 2xx answer. A worker sets its patience, the seconds to connect and to answer, as `g.patience`."""
    connect, read = g.get("patience") or current_app.config["REQUEST_PATIENCE"]
    end = time.monotonic() + connect + read
    session, login = _session(int(time.monotonic() // FRESH)), get_auth_from_url(url)
    options |= {"auth": login if any(login) else _keep_headers, "timeout": (connect, read)}
    try:
        with session.request(method, url, allow_redirects=False, stream=True, **options) as answer:
            text = _read(answer, end)
    except (requests.RequestException, HTTPError, OSError) as error:
        raise _no_answer(error, read) from None
    if not 200 <= answer.status_code < 300:
        raise _refusal(answer, text)
    return text


def _read(answer: requests.Response, end: float) -> str:
    """The text of the answer. Raises TimeoutError where it still comes in pieces at `end`, of time.monotonic()."""
    data = b""
    while len(data) < LONGEST_ANSWER and (piece := answer.raw.read1(LONGEST_ANSWER - len(data), decode_content=True)):
        data += piece
        if time.monotonic() > end:
            raise TimeoutError
    return data.decode("utf-8", "replace")


def _no_answer(error: BaseException, seconds: float) -> Retry:
    """The error to raise where a service gave no answer in `seconds`, in the words of what first went wrong."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    if not isinstance(error, TimeoutError):
        reason = getattr(error, "strerror", None) or type(error).__name__
        return Unavailable(f"no connection or no valid answer: {reason}")
    if "patience" not in g:
        return OutOfPatience("no answer yet: it is asked again with more patience", after=0)
    return Unavailable(f"no answer in {seconds:.0f} s")


def _refusal(answer: requests.Response, text: str) -> Exception:
    """The error to raise for an answer that is no 2xx, with what the service says about it."""
    reason = " ".join(f"answered {answer.status_code}: {text}"[:LONGEST_REASON].split()).removesuffix(":")
    if answer.status_code == 429 or answer.status_code >= 500:
        return Unavailable(reason, _retry_after(answer))
    kinds: dict[int, type[Exception]] = {404: NotFound, 409: DoneBefore, 410: GiveUp}
    return kinds.get(answer.status_code, Retry)(reason)


def _retry_after(answer: requests.Response) -> float | None:
    """Seconds from now, from either form of RFC 9110's Retry-After; None where it is neither, or not in the future."""
    try:
        return RetryPolicy().get_retry_after(answer.raw) or None
    except (HTTPError, ValueError, OverflowError):
        return None
