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
from stores.postgres_connections import ANSWER, NO_ANSWER, Connection, explain, steady
from stores.records import Refused, StoreError
from stores.sqlite import SQLite


class Postgres(Database):
    name = "postgresql"
    skip_locked = "FOR UPDATE SKIP LOCKED"

    def __init__(self, url: str, spool: SQLite | None = None, clock: Callable[[], float] | None = None):
        options = conninfo_to_dict(url)
        self.server = f"{options.get('host', 'localhost')}:{options.get('port', 5432)}"
        self.durability = f"{self.server}: what is acknowledged survives what that server's settings and plan do"
        self.spool = spool
        self.now = clock or self._server_time
        self._url, self._user = url, str(options.get("user", ""))
        self._ahead = time.time() - steady()  # how far the server's clock is ahead of `steady`, once it is known
        # Slow pages leave the other half of the connections to updates.
        self._lock, self._reading = threading.Lock(), threading.Semaphore(connections.CONNECTIONS // 2)
        self._attempt = threading.Thread()  # to reach the server
        self._pool = connections.new_pool(url, self._set_up)
        atexit.register(self.close)  # a pool that is open at the end holds Python 3.13 up for 20 s

    def query(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        with self._reading, self._connection(may_be_slow=True) as connection:
            return connection.run(sql, values)

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
            self.failure = f"{self.server}: {NO_ANSWER}"
        if self.failure:
            raise StoreError(self.failure)

    def close(self) -> None:
        if self.spool:
            self.spool.close()
        self._pool.close(timeout=0)
        self._pool = connections.new_pool(self._url, self._set_up)  # as one that was closed cannot be opened again

    def _server_time(self) -> float:
        if self._pool.closed and not self.failure:
            with suppress(StoreError):  # then this machine's clock has to do
                self.probe()
        return steady() + self._ahead

    def _connect(self) -> None:
        """Reach the server, make the tables where there are none, and have connections made anew, as the address may
        lead to another server by now."""
        try:
            with Connection.connect(self._url, **connections.OPTIONS) as connection:
                self._set_up(connection)
                connection.create_tables()
        except Exception as error:
            self.failure = f"{self.server}: {explain(error, self._user)}"
        else:
            self._pool.open()
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
        if self._pool.closed and not self.failure:
            self.probe()
        if self.failure:
            raise StoreError(self.failure)
        pool = self._pool
        try:
            connection = pool.getconn(ANSWER)
        except psycopg.Error:
            if not pool.get_stats()["pool_size"]:
                self.failure = f"{self.server}: every connection was lost"
            raise StoreError(self.failure or f"{self.server}: busy: no connection within {ANSWER:.0f} s") from None
        try:
            yield connection
        except connections.BAD_VALUES as error:
            raise Refused(f"{self.server}: {explain(error, self._user)}") from error
        except psycopg.Error as error:
            reason = explain(error, self._user)
            if not (isinstance(error, psycopg.errors.TransactionRollback) or (may_be_slow and reason == NO_ANSWER)):
                self.failure = f"{self.server}: {reason}"
            raise StoreError(f"{self.server}: {reason}") from error
        finally:
            pool.putconn(connection)
