"""HTTP, as handlers use it: `post` and `get`, which raise what decides about the next attempt."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from socket import gaierror
from ssl import SSLCertVerificationError
from threading import Lock
from typing import Any

import requests
from flask import current_app, g
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url
from urllib3.exceptions import HTTPError

from config import VERSION
from handlers.errors import Deferred, DoneBefore, GiveUp, NotFound, OutOfPatience, Retry, Unavailable

__all__ = ["Deferred", "GiveUp", "Retry", "Unavailable", "get", "post"]

POOL = 32  # connections to one host: as many as a lane has places
FRESH = 20.0  # seconds that a session is used: firewalls forget idle connections
LONGEST_RETRY_AFTER = 3600.0  # seconds
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


class _KeepHeaders(AuthBase):
    """Leaves our own Authorization as it is, which requests would replace by what a netrc has for the host."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


class _Sessions:
    """The session that all threads use, and for how long it has been used."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._session, self._made_at = requests.Session(), float("-inf")

    def current(self) -> requests.Session:
        with self._lock:
            if time.monotonic() - self._made_at > FRESH:
                self._session, self._made_at = _new_session(), time.monotonic()
            return self._session


def _new_session() -> requests.Session:
    session = requests.Session()
    session.headers["User-Agent"] = f"call-status-receiver/{VERSION}"
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    for scheme in ("http://", "https://"):
        session.mount(scheme, requests.adapters.HTTPAdapter(pool_maxsize=POOL))
    return session


_sessions = _Sessions()


def _request(method: str, url: str, **options: Any) -> str:
    """The patience of whoever calls the handler is `g.patience`: seconds to connect and to answer, in a worker."""
    connect, read = patience = g.get("patience") or current_app.config["REQUEST_PATIENCE"]
    end = time.monotonic() + connect + read
    user, password = get_auth_from_url(url)
    options |= {"auth": HTTPBasicAuth(user, password) if user else _KeepHeaders(), "timeout": (connect, read)}
    try:
        with _sessions.current().request(method, url, allow_redirects=False, stream=True, **options) as answer:
            text = _read(answer, end)
    except (requests.RequestException, HTTPError, OSError) as error:
        raise _no_answer(error, patience) from None
    if not 200 <= answer.status_code < 300:
        raise _refusal(answer, text)
    return text


def _read(answer: requests.Response, end: float) -> str:
    """The text of the answer. Raises TimeoutError where it still comes in pieces at `end`, of time.monotonic()."""
    read = b""
    while len(read) < LONGEST_ANSWER and (piece := answer.raw.read1(LONGEST_ANSWER - len(read), decode_content=True)):
        read += piece
        if time.monotonic() > end:
            raise TimeoutError
    return read.decode("utf-8", "replace")


def _no_answer(error: Exception, patience: tuple[float, float]) -> Retry:
    """The error to raise where a service gave no answer, in words that tell what to look at."""
    causes = list(_causes(error))
    if any(isinstance(cause, SSLCertVerificationError) for cause in causes):
        return Unavailable("its certificate is not trusted")
    if any(isinstance(cause, gaierror) for cause in causes):
        return Unavailable("its name was not found")
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes):
        return Unavailable("the connection was refused")
    if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in causes):
        if "patience" not in g:
            return OutOfPatience("no answer yet: it is asked again with more patience")
        return Unavailable(f"no answer in {patience[1]:.0f} s")
    return Unavailable(f"no connection or no valid answer ({type(causes[-1]).__name__})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _refusal(answer: requests.Response, text: str) -> Exception:
    """The error to raise for an answer that is no 2xx, with what the service says about it."""
    reason = " ".join(f"answered {answer.status_code}: {text}"[:LONGEST_REASON].split()).removesuffix(":")
    if answer.status_code == 429 or answer.status_code >= 500:
        return Unavailable(reason, _retry_after(answer.headers.get("Retry-After", "")))
    kinds: dict[int, type[Exception]] = {404: NotFound, 409: DoneBefore, 410: GiveUp}
    return kinds.get(answer.status_code, Retry)(reason)


def _retry_after(value: str) -> float | None:
    """Seconds from now, an hour at most, from either form of RFC 9110's Retry-After; None where it is neither, or not
    in the future."""
    try:
        if value.isascii() and value.isdigit():
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return min(seconds, LONGEST_RETRY_AFTER) if seconds > 0 else None
