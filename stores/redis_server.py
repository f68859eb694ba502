"""One Redis or Valkey server: few connections, short time-outs, and one script whose every verb is one round trip."""

import hashlib
import json
import os
import socket
import ssl
import struct
import time
from pathlib import Path
from queue import Empty, LifoQueue
from typing import Any

from hiredis import pack_command
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, DefaultParser
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
TRUSTED = 1.0  # seconds for which a connection that was used is taken to be open

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


class _Parser(DefaultParser):
    """Has the kernel keep the time-out, for Python would poll before each read and each write."""

    def on_connect(self, connection: AbstractConnection, **kwargs: Any) -> None:
        super().on_connect(connection, **kwargs)
        if not isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(None)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 0, int(TIMEOUT * 1_000_000)))

    def read_from_socket(self, **kwargs: Any) -> bool:
        try:
            return super().read_from_socket(**kwargs)
        except ConnectionError as error:
            if isinstance(error.__context__, BlockingIOError):
                raise TimeoutError(f"no answer within {TIMEOUT} s") from None
            raise


class RedisServer:
    """Connects when it is used and not before, in each process anew. `retention`: seconds until a key expires."""

    def __init__(self, url: str, retention: int, *, verify_tls: bool = True, max_connections: int = 9):
        self._tls = url.startswith("rediss:")
        unverified = {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
        self._pool = ConnectionPool.from_url(
            url,
            max_connections=max_connections,
            socket_connect_timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            parser_class=_Parser,
            retry=Retry(NoBackoff(), 0),  # what may be repeated, `run` repeats
            protocol=2,  # 3 also asks for notifications, which nothing here uses
            decode_responses=True,
            **(unverified if self._tls and not verify_tls else {}),
        )
        self._start_afresh()
        os.register_at_fork(after_in_child=self._start_afresh)
        self._retention = retention
        server = self._pool.connection_kwargs
        self.address = server.get("path") or f"{server['host']}:{server.get('port', 6379)}"

    def close(self) -> None:
        for connection in self._connections:
            connection.disconnect()

    def _start_afresh(self) -> None:
        """Make the connections, which connect when they are used; the one used last is used first."""
        self._pool.reset()
        self._connections = [self._pool.make_connection() for _ in range(self._pool.max_connections)]
        self._free: LifoQueue[tuple[AbstractConnection, float]] = LifoQueue()  # and when each was used
        for connection in self._connections:
            self._free.put((connection, 0.0))
        self._failed_at = 0.0

    def run(self, verb: str, **values: Any) -> Any:
        """The answer of the script's `verb` to the `values` that are not None. Raises StoreError."""
        arguments = (verb, self._retention, json.dumps(given(**values)))
        try:
            try:
                return self._evaluate(*arguments)
            except (ConnectionError, TimeoutError):
                if verb in _NOT_REPEATED:
                    raise
                return self._evaluate(*arguments)
        except RedisError as error:
            raise self._store_error(error) from error

    def info(self) -> dict[str, str]:
        """What the server tells of its memory and of what it writes to disk. Raises StoreError."""
        try:
            text = self._ask("INFO", "memory", "persistence")
        except RedisError as error:
            raise self._store_error(error) from error
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def _store_error(self, error: RedisError) -> StoreError:
        return StoreError(f"{self.address}: {error}{_hint(error, self._tls)}")

    def _evaluate(self, verb: str, *arguments: Any) -> Any:
        try:
            return self._ask("EVALSHA", _HASHES[verb], 0, verb, *arguments)
        except NoScriptError:
            return self._ask("EVAL", _SCRIPTS[verb], 0, verb, *arguments)

    def _ask(self, *command: Any) -> Any:
        """The answer to one command. The library's client and pool wrap the same, and cost thrice as much."""
        try:
            connection, used_at = self._free.get(timeout=TIMEOUT)
        except Empty:
            raise ConnectionError(f"no connection is free within {TIMEOUT} s") from None
        try:
            if used_at <= max(self._failed_at, time.monotonic() - TRUSTED) and _is_closed(connection):
                connection.disconnect()
            connection.send_packed_command([pack_command(command)], check_health=False)
            return connection.read_response()
        except (ConnectionError, TimeoutError):
            self._failed_at = time.monotonic()
            raise
        finally:
            self._free.put((connection, time.monotonic()))


def _is_closed(connection: AbstractConnection) -> bool:
    """Whether the server has closed it: it does when one is idle for minutes, and when it ends."""
    try:
        return connection.is_connected and connection.can_read()
    except RedisError:
        return True


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
