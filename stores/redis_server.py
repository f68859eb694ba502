"""One Redis or Valkey server: few connections, short time-outs, and one script whose every verb is one round trip."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import BlockingConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    RedisError,
    TimeoutError,
)
from redis.retry import Retry

from stores import StoreError

TIMEOUT = 0.5  # seconds to connect, to wait for an answer, and to wait for a connection that is free

_SCRIPT = Path(__file__).with_name("redis.lua").read_text()
# A full server refuses what takes memory, and goes on with what mostly frees it. A replica answers what only reads.
_FLAGS = dict.fromkeys(("record", "track", "check", "claim", "claim_report", "count_refusals"), "")
_FLAGS |= dict.fromkeys(
    ("settle", "settle_report", "note_asked", "take", "hurry", "forget", "prune"), " flags=allow-oom"
)
_FLAGS |= dict.fromkeys(("active", "recent", "call", "figures", "updates", "backlog", "refusals"), " flags=no-writes")
_SCRIPTS = {verb: f"#!lua{flags}\n{_SCRIPT}" for verb, flags in _FLAGS.items()}
_HASHES = {verb: hashlib.sha1(script.encode()).hexdigest() for verb, script in _SCRIPTS.items()}
# What would be answered otherwise than the first time, or took too long because there is much to do.
_NOT_REPEATED = ("record", "hurry", "forget", "prune", "claim", "claim_report", "count_refusals")


class RedisServer:
    """Connects when it is used and not before, in each process anew. `retention`: seconds until a key expires."""

    def __init__(self, url: str, retention: int, *, verify_tls: bool = True, max_connections: int = 9):
        self._tls = url.startswith("rediss:")
        unverified = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            retry=Retry(NoBackoff(), 0),  # what may be repeated, `run` repeats
            protocol=2,  # 3 also asks for notifications, which nothing here uses
            decode_responses=True,
            **(unverified if self._tls and not verify_tls else {}),
        )
        self._retention = retention
        server = self._pool.connection_kwargs
        self.address = server.get("path") or f"{server['host']}:{server.get('port', 6379)}"

    def close(self) -> None:
        self._pool.disconnect()

    def run(self, verb: str, **values: Any) -> Any:
        """The answer of the script's `verb` to the `values` that are not None. Raises StoreError."""
        arguments = (verb, self._retention, json.dumps(given(**values)))
        with self._errors():
            try:
                return self._evaluate(*arguments)
            except (ConnectionError, TimeoutError):
                if verb in _NOT_REPEATED:
                    raise
                return self._evaluate(*arguments)

    def info(self) -> dict[str, str]:
        """What the server tells of its memory and of what it writes to disk. Raises StoreError."""
        with self._errors():
            connection = self._pool.get_connection()
            try:
                connection.send_command("INFO", "memory", "persistence")
                text = connection.read_response()
            finally:
                self._pool.release(connection)
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise StoreError(f"{self.address}: {error}{_hint(error, self._tls)}") from error

    def _evaluate(self, verb: str, *arguments: Any) -> Any:
        connection = self._pool.get_connection()
        try:  # a third less work than the library's client, which wraps the same
            connection.send_command("EVALSHA", _HASHES[verb], 0, verb, *arguments)
            return connection.read_response()
        except NoScriptError:
            connection.send_command("EVAL", _SCRIPTS[verb], 0, verb, *arguments)
            return connection.read_response()
        finally:
            self._pool.release(connection)


def given(**values: Any) -> dict[str, Any]:
    """`values` without those that are None: a name that is not there is nil to the script."""
    return {name: value for name, value in values.items() if value is not None}


def _hint(error: RedisError, tls: bool) -> str:
    """What to set where a setting may be the cause."""
    text = str(error)
    if isinstance(error, AuthenticationError | NoPermissionError):
        return " (correct the user name or password in REDIS_URL)"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return " (where the platform signs its own certificate, set REDIS_TLS_VERIFY=false)"
    if tls and ("SSL" in text or "Timeout connecting" in text):
        return " (where it speaks no TLS, REDIS_URL starts with redis://)"
    if not tls and ("closed by server" in text or "reset by peer" in text):
        return " (where it speaks TLS only, REDIS_URL starts with rediss://)"
    return ""
