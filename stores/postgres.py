"""PostgreSQL 14 or newer, which any number of machines share.

Nothing waits for a server that is away: the first call that fails raises StoreError within about a second, later calls
fail at once until `probe` has reached the server again.
"""

import atexit
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from stores import postgres_connections as connections
from stores.database import Database, Execute, Rows
from stores.postgres_connections import ANSWER, Connection, Pool, explain, steady
from stores.records import Refused, StoreError
from stores.schema import create_postgres
from stores.sqlite import SQLite

READING = connections.CONNECTIONS // 2  # of the connections at most, so that slow pages leave the rest to updates


class Postgres(Database):
    name = "postgresql"
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, spool: SQLite | None = None, clock: Callable[[], float] | None = None):
        options = conninfo_to_dict(url)
        self.server = f"{options.get('host', 'localhost')}:{options.get('port', 5432)}"
        self.durability = f"{self.server}: what is acknowledged survives what that server's settings and plan do"
        self.spool = spool
        self._url, self._user, self._clock = url, str(options.get("user", "")), clock
        self._ahead = time.time() - steady()  # how far the server's clock is ahead of `steady`, once it is known
        self._lock, self._reading = threading.Lock(), threading.BoundedSemaphore(READING)
        self._attempt = threading.Thread()  # to reach the server
        self._pool: Pool | None = None
        atexit.register(self.close)  # a pool that is open at the end holds Python 3.13 up for 20 s

    def now(self) -> float:
        if self._clock:
            return self._clock()
        if not (self._pool or self.failure):
            with suppress(StoreError):  # then this machine's clock has to do
                self.probe()
        return steady() + self._ahead

    def query(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        if not self._reading.acquire(timeout=ANSWER):
            raise StoreError(f"{self.server}: busy: others read for {ANSWER:.0f} s")
        try:
            with self._connection(may_be_slow=True) as connection:
                return connection.run(sql, values)
        finally:
            self._reading.release()

    def execute(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        with self._connection() as connection:
            return connection.run(sql, values)

    @contextmanager
    def transaction(self) -> Iterator[Execute]:
        with self._connection(may_be_slow=True) as connection, connection.transaction():
            yield connection.run

    def chain(self, sql: str, values: Mapping[str, Any], *more: str) -> int | None:
        parts = [f"kept AS ({sql})", *(f"more{number} AS ({statement})" for number, statement in enumerate(more))]
        rows = self.execute(f"WITH {', '.join(parts)} SELECT id FROM kept", values)
        return rows[0][0] if rows else None

    def probe(self) -> None:
        with self._lock:
            if not self._attempt.is_alive():
                self._attempt = threading.Thread(target=self._connect, name="connect", daemon=True)
                self._attempt.start()
            attempt = self._attempt
        attempt.join(ANSWER)  # neither a request nor a stop waits longer
        if attempt.is_alive():
            self.failure = f"{self.server}: no answer within {ANSWER:.0f} s"
        if self.failure:
            raise StoreError(self.failure)

    def close(self) -> None:
        if self.spool:
            self.spool.close()
        pool, self._pool = self._pool, None
        if pool:
            pool.close(timeout=0)

    def _connect(self) -> None:
        """Reach the server, make the tables where there are none, and have connections made anew, as the address may
        lead to another server by now."""
        try:
            with Connection.connect(self._url, **connections.OPTIONS) as connection:
                self._set_up(connection)
                create_postgres(connection)
        except Exception as error:
            self.failure = f"{self.server}: {explain(error, self._user)}"
        else:
            self._pool = self._pool or connections.new_pool(self._url, self._set_up)
            self._pool.drain()
            self.failure = ""

    def _set_up(self, connection: Connection) -> None:
        """Set what neither the role nor the server may, and learn how far the server's clock is ahead of `steady`."""
        ((*_, now),) = connection.execute(connections.SET_UP).fetchall()
        self._ahead = float(now - steady())

    @contextmanager
    def _connection(self, *, may_be_slow: bool = False) -> Iterator[Connection]:
        """A connection that commits each statement. Raises StoreError.

        Unless an error is about one statement only, nobody but `probe` asks the server after it. No answer in time is
        about one statement where that `may_be_slow`."""
        if not (self._pool or self.failure):
            self.probe()
        pool = self._pool
        if self.failure or not pool:
            raise StoreError(self.failure or f"{self.server}: closed meanwhile")
        try:
            connection = pool.getconn()
        except psycopg.Error:
            if not pool.get_stats()["pool_size"]:
                self.failure = f"{self.server}: every connection was lost"
            raise StoreError(self.failure or f"{self.server}: busy: no connection within {ANSWER:.0f} s") from None
        try:
            yield connection
        except connections.BAD_VALUES as error:
            raise Refused(f"{self.server}: {explain(error, self._user)}") from error
        except psycopg.Error as error:
            reason = f"{self.server}: {explain(error, self._user)}"
            is_slow = may_be_slow and connections.is_slow(error)
            if not (is_slow or isinstance(error, psycopg.errors.TransactionRollback)):
                self.failure = reason
            raise StoreError(reason) from error
        finally:
            pool.putconn(connection)
