"""The store: what is kept of calls, and what is still to be done, in one SQLite file or in PostgreSQL.

The verbs are functions by subject (`updates`, `jobs`, `calls`, `search`, `deliveries`, `export`, `locks`,
`retention`, `refusals`, `spool`) and take the database first. Their SQL is the same for both; `sqlite` and `postgres`
say how to connect, to lock and to be durable. Every verb raises StoreError when the database cannot do it. Times are
Unix seconds.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from flask import Flask, current_app

from schemas.status_update import StatusUpdate
from stores import updates
from stores.database import Database
from stores.records import Job, Kept, Refused, StoreError
from stores.refusals import RefusalCounter
from stores.spool import RESERVE
from stores.sqlite import SQLite

__all__ = ["Database", "Refused", "StoreError", "create", "get_refusals", "get_store", "keep", "keep_as_is"]


def create(config: Mapping[str, Any]) -> Database:
    """The database that the settings name. Opens nothing yet."""
    if not config["DATABASE_URL"]:
        return SQLite(config["SQLITE_PATH"], clock=config["CLOCK"])
    from stores.postgres import Postgres  # psycopg is imported only where it is used

    spool = SQLite(f"{config['SQLITE_PATH']}.spool", clock=config["CLOCK"], reserve=RESERVE)
    return Postgres(config["DATABASE_URL"], spool=spool, clock=config["CLOCK"])


def init_app(app: Flask) -> None:
    app.extensions |= {"store": create(app.config), "refusals": RefusalCounter()}


def get_store() -> Database:
    store: Database = current_app.extensions["store"]
    return store


def get_refusals() -> RefusalCounter:
    refusals: RefusalCounter = current_app.extensions["refusals"]
    return refusals


def keep(update: StatusUpdate, handlers: Sequence[str]) -> Kept:
    """Atomically keep `update` with a leased job for each of `handlers`, and bring its call up to date; in the spool
    where the database cannot. The database counts repeats. Raises StoreError where neither could keep it."""
    db = get_store()
    lease = db.now() + current_app.config["LEASE"]
    result = keep_as_is(update, [Job(name, "leased", lease) for name in handlers], handlers)
    if result.outcome == "repeat":
        with suppress(StoreError):  # the update is kept, so its sender is answered 200
            updates.count_repeat(db, update)
    return result._replace(lease=lease)


def keep_as_is(update: StatusUpdate, jobs: Sequence[Job], handlers: Iterable[str] | None, **receipts: Any) -> Kept:
    """Atomically keep `update` with `jobs` as they are; where the database cannot, in the spool, where nothing is
    leased. `receipts` are `times` and `last_received_at`. Raises StoreError where neither could keep it."""
    db = get_store()
    try:
        update_id = updates.keep(db, update, jobs, handlers, **receipts)
        return Kept("repeat" if update_id is None else "new", update_id)
    except StoreError:
        if db.spool is None:
            raise
    jobs = [replace(job, state="pending", due_at=db.now()) if job.state == "leased" else job for job in jobs]
    updates.keep(db.spool, update, jobs, handlers, **receipts)
    return Kept("spooled")
