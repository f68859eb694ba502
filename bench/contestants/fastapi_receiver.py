"""The same promises with FastAPI, uvicorn, httpx and asyncpg, as that stack is written well.

Two statements an update: its record, with its jobs and its call, and then what the handlers came to. What fails is
retried.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import os
import re
import sys
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote

import asyncpg
import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import AwareDatetime, BaseModel, StringConstraints, ValidationError

SECRET, CRM_URL = os.environ["WEBHOOK_SECRET"].encode(), os.environ.get("CRM_WEBHOOK_URL")
TOLERANCE, LEASE, RETRY, OUTBOUND_TIMEOUT = 300, 60, 30, 3.0
HANDLERS = ("log_event", "update_crm")
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
TABLES = """
CREATE TABLE IF NOT EXISTS fastapi_updates (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, call_id TEXT NOT NULL,
  status TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL, message TEXT NOT NULL, UNIQUE (call_id, status));
CREATE TABLE IF NOT EXISTS fastapi_jobs (update_id BIGINT NOT NULL REFERENCES fastapi_updates (id) ON DELETE CASCADE,
  handler TEXT NOT NULL, due_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (update_id, handler));
CREATE INDEX IF NOT EXISTS fastapi_jobs_due ON fastapi_jobs (due_at);
CREATE TABLE IF NOT EXISTS fastapi_calls (id TEXT PRIMARY KEY, status TEXT NOT NULL, type TEXT, line TEXT,
  customer TEXT, received_at DOUBLE PRECISION NOT NULL, started_at DOUBLE PRECISION, ended_at DOUBLE PRECISION,
  error TEXT);
CREATE INDEX IF NOT EXISTS fastapi_calls_received ON fastapi_calls (received_at);
"""
RECORD = """
WITH kept AS (INSERT INTO fastapi_updates (call_id, status, received_at, message) VALUES ($1, $2, $3, $4)
    ON CONFLICT DO NOTHING RETURNING id),
  jobs AS (INSERT INTO fastapi_jobs SELECT id, unnest($5::text[]), $6 FROM kept),
  tracked AS (INSERT INTO fastapi_calls AS c SELECT $1, $2, $7, $8, $9, $3, $10, $11, $12 FROM kept
    ON CONFLICT (id) DO UPDATE SET status = CASE WHEN c.ended_at IS NOT NULL THEN c.status ELSE excluded.status END,
    started_at = coalesce(c.started_at, excluded.started_at), ended_at = coalesce(c.ended_at, excluded.ended_at),
    error = coalesce(c.error, excluded.error), received_at = least(c.received_at, excluded.received_at))
SELECT id FROM kept"""
TAKE = """
UPDATE fastapi_jobs AS j SET due_at = $2 FROM fastapi_updates AS u WHERE u.id = j.update_id AND (update_id, handler) =
  (SELECT update_id, handler FROM fastapi_jobs WHERE due_at <= $1 ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED)
RETURNING u.id, u.message, j.handler"""
Name = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logging.getLogger("httpx").setLevel(logging.WARNING)
logger = logging.getLogger("receiver")


class Call(BaseModel):
    id: Annotated[Name, StringConstraints(max_length=256)]
    status: Annotated[Name, StringConstraints(max_length=64)]
    type: str | None = None


class PhoneNumber(BaseModel):
    number: str | None = None
    name: str | None = None
    id: str | None = None


class Customer(BaseModel):
    number: str | None = None


class Assistant(BaseModel):
    metadata: dict[str, Any] | None = None


class Message(BaseModel):
    type: Literal["status-update"]
    timestamp: AwareDatetime
    call: Call
    phone_number: PhoneNumber | None = None
    customer: Customer | None = None
    error: str | None = None
    end_reason: str | None = None
    assistant: Assistant | None = None

    @property
    def line(self) -> str | None:
        return self.phone_number and self.phone_number.number

    @property
    def caller(self) -> str | None:
        return self.customer and self.customer.number


class Envelope(BaseModel):
    message: Message


@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.db = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=8, command_timeout=1)
    async with app.state.db.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock(1)")
        await connection.execute(TABLES)
    app.state.crm = httpx.AsyncClient(timeout=OUTBOUND_TIMEOUT, trust_env=False)
    retrying = asyncio.create_task(retry(app))
    yield
    retrying.cancel()
    await app.state.crm.aclose()
    await app.state.db.close()


app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)


def verify(request: Request, body: bytes) -> None:
    timestamp = request.headers.get("x-webhook-timestamp", "")
    given = request.headers.get("x-webhook-signature", "").removeprefix("sha256=")
    expected = hmac.new(SECRET, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    if not timestamp.isdecimal() or not hmac.compare_digest(expected.encode(), given.encode()):
        raise HTTPException(401, "wrong signature")
    if abs(time.time() - int(timestamp)) > TOLERANCE:
        raise HTTPException(401, "stale")


@app.post("/webhooks/status-update")
async def status_update(request: Request) -> PlainTextResponse:
    body = await request.body()
    verify(request, body)
    try:
        message = Envelope.model_validate_json(body).message
    except ValidationError as error:
        return JSONResponse({"error": error.errors(include_input=False, include_url=False)}, 422)
    now, call, at = time.time(), message.call, message.timestamp.timestamp()
    values = [call.id, call.status, now, message.model_dump_json(), HANDLERS, now + LEASE]
    values += [call.type, message.line, message.caller, at if call.status == "in-progress" else None]
    values += [at if call.status.startswith("ended") else None, message.error]
    try:
        update_id = await app.state.db.fetchval(RECORD, *values)
    except FAILURES:
        return JSONResponse({"error": "could not be kept, send it again"}, 503, {"Retry-After": "30"})
    if update_id is not None:
        await work(message, update_id, HANDLERS)
    return PlainTextResponse("OK")


async def work(message: Message, update_id: int, handlers: tuple[str, ...]) -> None:
    """Do what the handlers are for, and settle their jobs: what failed is due again later."""
    failed = []
    if "log_event" in handlers:
        log_event(message)
    if "update_crm" in handlers and CRM_URL:
        try:
            await update_crm(message)
        except httpx.HTTPError as error:
            logger.warning(json.dumps({"event": "handler failed", "call_id": message.call.id, "error": str(error)}))
            failed.append("update_crm")
    done = [handler for handler in handlers if handler not in failed]
    try:
        if done:
            await app.state.db.execute(
                "DELETE FROM fastapi_jobs WHERE update_id = $1 AND handler = ANY($2)", update_id, done
            )
        if failed:
            later = time.time() + RETRY
            await app.state.db.execute("UPDATE fastapi_jobs SET due_at = $2 WHERE update_id = $1", update_id, later)
    except FAILURES as error:
        logger.error(json.dumps({"event": "not settled", "call_id": message.call.id, "error": str(error)}))


def log_event(message: Message) -> None:
    line = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": "INFO",
        "event": "update",
        "call_id": message.call.id,
        "status": message.call.status,
        "type": message.call.type,
        "line": message.line,
        "customer": message.caller,
        "error": message.error,
        "end_reason": message.end_reason,
    }
    logger.info(re.sub(r"(\+\d{3})\d+(\d{2})", r"\1***\2", json.dumps(line)))


async def update_crm(message: Message) -> None:
    call = message.call
    record = {
        "type": "call",
        "phone": message.caller,
        "status": call.status,
        "timestamp": message.timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "call_id": call.id,
        "direction": call.type.split("_")[0] if call.type else None,
        "line": message.line,
        "error": message.error,
        "metadata": message.assistant and message.assistant.metadata,
    }
    key = f"{quote(call.id, safe='')}:{quote(call.status, safe='')}"
    answer = await app.state.crm.post(CRM_URL, json=record, headers={"Idempotency-Key": key})
    answer.raise_for_status()


async def retry(app: FastAPI) -> None:
    """Every second, do what is due: one job at a time."""
    while True:
        await asyncio.sleep(1)
        try:
            while taken := await app.state.db.fetchrow(TAKE, time.time(), time.time() + LEASE):
                await work(Message.model_validate_json(taken["message"]), taken["id"], (taken["handler"],))
        except FAILURES as error:
            logger.error(json.dumps({"event": "retries wait for the store", "error": str(error)}))
