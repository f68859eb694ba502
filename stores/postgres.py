"""PostgreSQL 14 or newer, which any number of machines share.

Nothing waits for a server that is away: the first verb that fails says so, after about a second at most, and from then
on every verb fails at once until `probe` has reached the server again.
"""

import atexit
import functools
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import ConnectionPool, PoolTimeout

from stores.database import Database, Execute, Rows
from stores.records import StoreError
from stores.schema import UnusableDatabase, check_postgres, create_postgres

CONNECTIONS = 8  # a process; the smallest plans allow 20 in all
ANSWER = 1.0  # seconds to wait for an answer, and for a connection
SLOW_ANSWER = 60.0  # where nobody waits: pruning, upgrades
CONNECT = 2  # seconds, the least that PostgreSQL's library takes
LIFETIME = 600.0  # seconds of a connection; a new one also looks at the server's clock again
logging.getLogger("psycopg.pool").setLevel(logging.ERROR)  # each failure is logged where it is noticed
BYTES_AN_UPDATE = 1200  # of the database, settled, of a call with two; measured


class _Connection(psycopg.Connection):
    """A connection that waits for an answer no longer than `patience`: a stopped server still takes every packet."""

    patience = SLOW_ANSWER

    def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, timeout or self.patience)


class Postgres(Database):
    name = "postgresql"
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, spool: Database | None = None, clock: Callable[[], float] | None = None):
        options = conninfo_to_dict(url)
        self.server = f"{options.get('host', 'localhost')}:{options.get('port', 5432)}"
        self.durability = f"{self.server}: what is acknowledged survives what that server's settings and plan do"
        self.spool = spool
        self._url, self._clock = url, clock
        self._ahead = time.time() - time.monotonic()  # how far the server's clock is, of this process's monotonic one
        self._lock = threading.Lock()
        self._pool: ConnectionPool[_Connection] | None = None
        atexit.register(self.close)  # a pool that is open at the end holds Python 3.13 up for 20 s

    def now(self) -> float:
        if self._clock:
            return self._clock()
        if not (self._pool or self.failure):
            with suppress(StoreError):  # then this machine's clock has to do
                self._first_pool()
        return time.monotonic() + self._ahead

    def query(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        with self._connection(reading=True) as connection:
            return connection.execute(_native(sql), values).fetchall()

    def execute(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        with self._connection() as connection:
            return _run(connection, sql, values)

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._connection(SLOW_ANSWER) as connection, connection.transaction():
            yield functools.partial(_run, connection)

    def chain(self, sql: str, values: Mapping[str, Any], *more: str) -> int | None:
        parts = [f"kept AS ({sql})", *(f"more{number} AS ({each})" for number, each in enumerate(more))]
        found = self.execute(f"WITH {', '.join(parts)} SELECT id FROM kept", values)
        return found[0][0] if found else None

    def advice(self) -> list[str]:
        ((version, size, used, allowed, commit),) = self.query(
            "SELECT current_setting('server_version'), pg_database_size(current_database()),"
            " (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
            " current_setting('max_connections'), current_setting('synchronous_commit')"
        )
        found = [
            f"PostgreSQL {version}, a primary: the database has {size / 1e6:,.0f} MB, about"
            f" {1e9 / BYTES_AN_UPDATE:,.0f} updates fit into a GB.",
            f"{used} of {allowed} connections are used; a process of this receiver takes {CONNECTIONS} at most.",
            f"synchronous_commit is {commit}{': a crash of the server can lose the last updates' * (commit == 'off')}.",
        ]
        ahead = time.monotonic() + self._ahead - time.time()
        if abs(ahead) > 1:
            found.append(f"This machine's clock is {abs(ahead):.0f} s {'behind' if ahead > 0 else 'ahead of'} it.")
        return found

    def probe(self) -> None:
        with self._lock:
            self._open()

    def close(self) -> None:
        if self.spool:
            self.spool.close()
        self._drop(self._pool)

    @contextmanager
    def _connection(self, patience: float = ANSWER, *, reading: bool = False) -> Iterator[_Connection]:
        """A connection that commits each statement. Raises StoreError. A slow `reading` says nothing of the server."""
        if self.failure:
            raise StoreError(self.failure)
        pool = self._pool or self._first_pool()
        try:
            connection = pool.getconn()
        except psycopg.Error as error:
            raise self._failed(error, pool) from None
        try:
            connection.patience = patience
            yield connection
        except psycopg.Error as error:
            connection.close()
            if reading and isinstance(error, psycopg.errors._WaitTimeout):
                raise StoreError(f"{self.server}: {_reason(error)}") from None
            raise self._failed(error, pool) from error
        finally:
            pool.putconn(connection)

    def _first_pool(self) -> "ConnectionPool[_Connection]":
        with self._lock:
            if self.failure:  # found out by another thread meanwhile
                raise StoreError(self.failure)
            return self._pool or self._open()

    def _open(self) -> "ConnectionPool[_Connection]":
        """Connect, see that the tables are there, and make a new pool, which follows an address that leads to another
        server by now. Raises StoreError."""
        options = {"autocommit": True, "prepare_threshold": None, "connect_timeout": CONNECT}  # as poolers need it
        if "target_session_attrs" not in self._url:
            options["target_session_attrs"] = "read-write"
        try:
            with _Connection.connect(self._url, **options) as connection:
                if not check_postgres(connection):
                    with connection.transaction():
                        create_postgres(connection)
                self._look_at_clock(connection)
        except (psycopg.Error, UnusableDatabase) as error:
            raise self._failed(error, self._pool) from None
        self._drop(self._pool)
        self._pool = ConnectionPool(
            self._url,
            connection_class=_Connection,
            kwargs=options,
            configure=self._look_at_clock,
            min_size=0,
            max_size=CONNECTIONS,
            timeout=ANSWER,
            max_lifetime=LIFETIME,
            reconnect_timeout=0,
            open=True,
        )
        self.failure = ""
        return self._pool

    def _look_at_clock(self, connection: _Connection) -> None:
        ((now,),) = connection.execute("SELECT date_part('epoch', clock_timestamp())").fetchall()
        self._ahead = now - time.monotonic()

    def _failed(self, error: Exception, pool: "ConnectionPool[_Connection] | None") -> StoreError:
        """The error to raise. Unless it is about one statement only, nobody but `probe` asks this server any more."""
        failure = f"{self.server}: {_reason(error)}"
        about_one = isinstance(error, psycopg.DataError | psycopg.IntegrityError | psycopg.errors.TransactionRollback)
        if pool is self._pool and not about_one:
            self.failure = failure
            self._drop(pool)
        return StoreError(failure)

    def _drop(self, pool: "ConnectionPool[_Connection] | None") -> None:
        self._pool = None
        if pool:
            pool.close(timeout=0)


def _run(connection: _Connection, sql: str, values: Mapping[str, Any] = {}) -> Rows:
    cursor = connection.execute(_native(sql), values)
    return cursor.fetchall() if cursor.description else []


@functools.lru_cache(256)
def _native(sql: str) -> str:
    """`sql` with psycopg's marks for its parameters."""
    return re.sub(r":(\w+)", r"%(\1)s", sql.replace("%", "%%"))


def _reason(error: Exception) -> str:
    """Why, in one line, and what to set where that is clear."""
    text = " ".join(str(error).split()).removeprefix("connection failed: ")
    if isinstance(error, PoolTimeout | psycopg.errors._WaitTimeout):
        text = f"no answer within {ANSWER:.0f} s"
    elif isinstance(error, psycopg.errors.InvalidPassword) or "authentication failed" in text:
        text += ": set DATABASE_URL to the right user and password"
    elif "SSL" in text or "certificate" in text:
        text += ": set sslmode in DATABASE_URL, as ?sslmode=require"
    return text[:400]
