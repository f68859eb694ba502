"""The store: what is kept of calls, and what is still to be done, in one SQLite file or in PostgreSQL.

The verbs are functions by subject (`updates`, `jobs`, `calls`, `search`, `export`, `locks`, `retention`,
`refusals`, `spool`) and take the database first. Their SQL is the same for both; `sqlite` and `postgres` say how
to connect, to lock and to be durable. Every verb raises StoreError when the database cannot do it. Times are Unix
seconds.
"""

from collections.abc import Mapping
from typing import Any

from flask import Flask, current_app

from stores.database import Database
from stores.records import StoreError
from stores.refusals import RefusalCounter

__all__ = ["Database", "StoreError", "create", "get_refusals", "get_store"]


def create(config: Mapping[str, Any]) -> Database:
    """The database that the settings name. Opens nothing yet."""
    from stores.sqlite import SQLite

    if not config["DATABASE_URL"]:
        return SQLite(config["SQLITE_PATH"], clock=config["CLOCK"])
    from stores.postgres import Postgres  # psycopg is imported only where it is used
    from stores.spool import RESERVE

    spool = SQLite(f"{config['SQLITE_PATH']}.spool", clock=config["CLOCK"], reserve=RESERVE)
    return Postgres(config["DATABASE_URL"], spool=spool, clock=config["CLOCK"])


def init_app(app: Flask) -> None:
    app.extensions |= {"store": create(app.config), "refusals": RefusalCounter()}


def get_store() -> Database:
    return current_app.extensions["store"]


def get_refusals() -> RefusalCounter:
    return current_app.extensions["refusals"]
