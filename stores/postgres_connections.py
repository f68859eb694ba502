"""Connections to PostgreSQL: how they are set up, how long they wait for an answer, and what their errors mean."""

import functools
import logging
import re
import select
import time
from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg_pool import ConnectionPool

from stores.database import Rows
from stores.schema import POSTGRES_TABLES, VERSION, UnusableDatabase, check_version

CONNECTIONS = 8  # a process; the smallest plans allow 20 in all
ANSWER = 1.0  # seconds to wait for an answer, and for a connection
NO_ANSWER = f"no answer within {ANSWER:.0f} s"
OPTIONS: dict[str, Any] = {
    "autocommit": True,
    "prepare_threshold": None,  # as poolers need it
    "connect_timeout": 2,  # seconds, the least that PostgreSQL's library takes
    "client_encoding": "UTF8",
    "cursor_factory": psycopg.RawCursor,  # else statements of over 4 kB are read anew each time: 12 % of the CPU
    "target_session_attrs": "read-write",  # what was a primary may be none after a failover
}
POOL: dict[str, Any] = {"min_size": 0, "max_size": CONNECTIONS, "reconnect_timeout": 0, "open": False}
# By a statement, as poolers refuse such options at a connection's start. The server ends a statement that takes too
# long a little before it is given up here.
SET_UP = f"""SELECT set_config('default_transaction_isolation', 'read committed', false),
  set_config('statement_timeout', '{900 * ANSWER:.0f}', false), date_part('epoch', clock_timestamp())"""
# One transaction; the number of its lock is of this program's own choosing.
CREATE = f"""SELECT pg_advisory_xact_lock(1667329132); {POSTGRES_TABLES}
  CREATE TABLE IF NOT EXISTS receiver AS SELECT {VERSION} AS version"""
BAD_VALUES = (psycopg.DataError, psycopg.IntegrityError, UnicodeError, OverflowError)
REMEDIES = {
    "authentication failed": "set DATABASE_URL to the right user and password",
    "does not support SSL": "turn TLS on at the server, or set sslmode in DATABASE_URL, as ?sslmode=prefer",
    "SSL|certificate|no encryption": "set sslmode in DATABASE_URL, as ?sslmode=require",
    "denied for schema|no schema": 'run GRANT USAGE, CREATE ON SCHEMA public TO "{user}"',
    "permission denied": 'run GRANT ALL ON ALL TABLES IN SCHEMA public TO "{user}"',
}


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits for an answer no longer than ANSWER: a server that is stopped takes every packet.

    `wait` is internal to psycopg; nothing public bounds the wait for an answer."""

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        return super().wait(gen, interval, timeout or ANSWER)

    def create_tables(self) -> None:
        """Create the tables where there are none: one process does, others wait. Raises UnusableDatabase."""
        if (encoding := self.info.parameter_status("server_encoding")) != "UTF8":
            raise UnusableDatabase(f"the database's encoding is {encoding}: create one with UTF8")
        if self.run("SELECT to_regclass('receiver')") == [(None,)]:
            self.execute(CREATE)
        check_version(self.run("SELECT max(version) FROM receiver")[0][0])

    def run(self, sql: str, values: Mapping[str, Any] = {}) -> Rows:
        statement, names = _native(sql)
        cursor = self.execute(statement, [values[name] for name in names])
        return cursor.fetchall() if cursor.description else []


logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # each failure is logged where it is noticed


def new_pool(url: str, set_up: Callable[[Connection], None]) -> ConnectionPool[Connection]:
    """A pool that is not open yet, and empty then. It calls `set_up` with each new connection."""

    def check(connection: Connection) -> None:
        """Replace all connections where the server has closed this one, as the pool takes a second for each but the
        first. A connection is closed where there is something to read before anything was asked."""
        poll = select.poll()
        poll.register(connection, select.POLLIN)
        if poll.poll(0):
            pool.drain()
            raise psycopg.OperationalError("closed by the server")

    pool = ConnectionPool(url, connection_class=Connection, kwargs=OPTIONS, configure=set_up, check=check, **POOL)
    return pool


@functools.lru_cache(256)
def _native(sql: str) -> tuple[str, list[str]]:
    """`sql` with PostgreSQL's marks for its parameters, and their names in that order."""
    names = list(dict.fromkeys(re.findall(r":(\w+)", sql)))
    return re.sub(r":(\w+)", lambda mark: f"${names.index(mark[1]) + 1}", sql), names


def steady() -> float:
    """Seconds that go on while the machine sleeps, where it has such a clock."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def explain(error: Exception, user: str) -> str:
    """Why, in one line, and what to do where that is clear."""
    if isinstance(error, psycopg.errors.QueryCanceled) or "timeout expired" in str(error):
        return NO_ANSWER
    text = " ".join(str(error).split()).removeprefix("connection failed: ")
    remedy = next((remedy for pattern, remedy in REMEDIES.items() if re.search(pattern, text)), "")
    return text[:300] + (f": {remedy.format(user=user)}" if remedy else "")
