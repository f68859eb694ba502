"""Fills a store: some updates come in by `flask import`, and SQL then copies their rows into the month before."""

import json
import random
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from bench.processes import ROOT

HOUR = 3600
DAYS = 29
LAST_DAY = 0.1  # the share of calls that were in the last 24 hours
ERRORS = ("STT connection failed", "LLM timed out after 30 s", "SIP 486 Busy here", "SIP 503", "no speech heard")
ERROR_RATE = 0.1
COMPUTED = {"seconds", "error", "end_reason"}  # columns of `calls` that nobody writes


def fill(environment: Mapping[str, str], updates: int, copies: int) -> None:
    """Have `updates` imported, then copied until there are `copies` of each, oldest first."""
    lines = "\n".join(map(json.dumps, exported(updates // 2)))
    command = [sys.executable, "-m", "flask", "import"]
    subprocess.run(command, cwd=ROOT, env=environment, input=lines.encode(), check=True, capture_output=True)
    with closing(connect(environment)) as db:
        for table in ("updates", "calls"):
            db.execute(f"CREATE TEMP TABLE base_{table} AS SELECT * FROM {table}")
        for copy in range(copies - 1, 0, -1):
            for table, key in (("updates", "call_id"), ("calls", "id")):
                db.execute(copied(columns(db, table), table, key, copy, hours_ago(copy, copies) * HOUR))


def connect(environment: Mapping[str, str]) -> Any:
    """The database that these settings name, by its own driver."""
    if "DATABASE_URL" in environment:
        return psycopg.connect(environment["DATABASE_URL"], autocommit=True)
    return sqlite3.connect(environment["SQLITE_PATH"], isolation_level=None, timeout=30)


def exported(calls: int) -> Iterator[dict[str, Any]]:
    """Lines of an export: the two updates of each call of the last hour."""
    for number in range(calls):
        call, error = str(uuid.uuid4()), random.choice(ERRORS) if random.random() < ERROR_RATE else None
        line, kind = number % 12, random.choice(("inbound_phone_call", "outbound_phone_call"))
        people: dict[str, Any] = {
            "phone_number": {"number": f"+3185083{5037 + line}", "name": f"Clinic {line}"},
            "customer": {"number": f"+316{number:08}"},
        }
        began = datetime.now(UTC) - timedelta(hours=1) * (1 - number / calls)
        ended = began + timedelta(seconds=random.uniform(10, 500))
        for status, moment in (("in-progress", began), ("ended-with-error" if error else "ended", ended)):
            message = {"type": "status-update", "timestamp": moment.isoformat(), **people}
            message["call"] = {"id": call, "type": kind, "status": status}
            if status == "ended-with-error":
                message["error"] = error
            yield {"message": message, "received_at": moment.isoformat(), "jobs": []}


def hours_ago(copy: int, copies: int) -> int:
    """Whole hours, by which a call moves to the hour of the day that it is in."""
    recent = copies * LAST_DAY
    if copy < recent:
        return int(24 * copy / recent)
    return 24 + int((DAYS - 1) * 24 * (copy - recent) / (copies - recent))


def columns(db: Any, table: str) -> list[str]:
    """The columns that are written; `updates` are numbered by the database itself."""
    names = [column[0] for column in db.execute(f"SELECT * FROM {table} LIMIT 0").description]
    return [name for name in names if name not in COMPUTED and (table, name) != ("updates", "id")]


def copied(names: list[str], table: str, key: str, copy: int, seconds: int) -> str:
    """The statement that adds one copy of the base of `table`, with ids of its own, so many seconds earlier."""
    new = {key: f"{key} || '-{copy}'", "message": f"replace(message, {key}, {key} || '-{copy}')"}
    new |= {name: f"{name} - {seconds}" for name in names if name.endswith("_at")}
    values = ", ".join(new.get(name, name) for name in names)
    return f"INSERT INTO {table} ({', '.join(names)}) SELECT {values} FROM base_{table}"
