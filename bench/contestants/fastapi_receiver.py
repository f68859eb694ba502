"""FastAPI on PostgreSQL, with asyncpg and httpx: an update is kept and its call tracked in one statement.

What it does not keep: updates while PostgreSQL is away (503, or 500 where it fails between two statements); the log
line of an update whose process is killed before it is written; quick answers while the CRM is slow, as each request
waits for it. Retries come every half minute, one after another, and never end.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse
from pydantic import ValidationError

from bench.contestants.common import Envelope, Message, crm_request, log_event, logger, verified

LEASE, RETRY = 60, 30  # seconds
FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)
TABLES = """SELECT pg_advisory_xact_lock(1);
CREATE TABLE IF NOT EXISTS updates (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, call_id TEXT NOT NULL,
  status TEXT NOT NULL, received_at DOUBLE PRECISION NOT NULL, message TEXT NOT NULL, due_at DOUBLE PRECISION,
  UNIQUE (call_id, status));
CREATE INDEX IF NOT EXISTS updates_due ON updates (due_at) WHERE due_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS calls (id TEXT PRIMARY KEY, status TEXT NOT NULL, type TEXT, line TEXT, customer TEXT,
  received_at DOUBLE PRECISION NOT NULL, started_at DOUBLE PRECISION, ended_at DOUBLE PRECISION, error TEXT);
CREATE INDEX IF NOT EXISTS calls_received ON calls (received_at)"""
KEEP = """WITH kept AS (INSERT INTO updates (call_id, status, received_at, message, due_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING RETURNING id),
  tracked AS (INSERT INTO calls AS c SELECT $1, $2, $6, $7, $8, $3,
      CASE WHEN $2::text = 'in-progress' THEN $9::float END, CASE WHEN $2::text LIKE 'ended%' THEN $9::float END,
      $10 FROM kept
    ON CONFLICT (id) DO UPDATE SET status = CASE WHEN c.ended_at IS NOT NULL THEN c.status ELSE excluded.status END,
    started_at = coalesce(c.started_at, excluded.started_at), ended_at = coalesce(c.ended_at, excluded.ended_at),
    error = coalesce(c.error, excluded.error), received_at = least(c.received_at, excluded.received_at))
SELECT id FROM kept"""
TAKE = """UPDATE updates SET due_at = $2 WHERE id = (SELECT id FROM updates WHERE due_at <= $1 ORDER BY due_at LIMIT 1
  FOR UPDATE SKIP LOCKED) RETURNING id, message"""

logging.getLogger("httpx").setLevel(logging.WARNING)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.db = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=1, max_size=8, command_timeout=1)
    await app.state.db.execute(TABLES)
    async with httpx.AsyncClient(trust_env=False) as app.state.crm:
        retrying = asyncio.create_task(retry())
        yield
        retrying.cancel()
    await app.state.db.close()


app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)


@app.post("/webhooks/status-update")
async def status_update(request: Request) -> PlainTextResponse:
    body = await request.body()
    if not verified(request.headers, body):
        raise HTTPException(401, "wrong signature, or stale")
    try:
        message = Envelope.model_validate_json(body).message
    except ValidationError as error:
        raise HTTPException(422, error.errors(include_input=False, include_url=False)) from None
    try:
        update_id = await keep(message)
    except FAILURES as error:
        logger.error("%s is not kept: %s", message.call.id, error)
        raise HTTPException(503, "could not be kept, send it again", {"Retry-After": "30"}) from None
    if update_id is not None:
        log_event(message)
        await update_crm(update_id, message)
    return PlainTextResponse("OK")


async def keep(message: Message) -> int | None:
    """The update's id, or None where it is a repeat."""
    now, call, moment = time.time(), message.call, message.timestamp.timestamp()
    numbers = message.phone_number.number, message.customer.number
    values = [call.id, call.status, now, message.model_dump_json(), now + LEASE, call.type, *numbers, moment]
    update_id: int | None = await app.state.db.fetchval(KEEP, *values, message.error)
    return update_id


async def update_crm(update_id: int, message: Message) -> None:
    due_at = None
    try:
        (await app.state.crm.post(**crm_request(message))).raise_for_status()
    except httpx.HTTPError as error:
        logger.warning("%s is tried again: %s", message.call.id, error)
        due_at = time.time() + RETRY
    await app.state.db.execute("UPDATE updates SET due_at = $2 WHERE id = $1", update_id, due_at)


async def retry() -> None:
    """Every second, do what is due."""
    while True:
        await asyncio.sleep(1)
        try:
            while update := await app.state.db.fetchrow(TAKE, time.time(), time.time() + LEASE):
                await update_crm(update["id"], Message.model_validate_json(update["message"]))
        except FAILURES as error:
            logger.error("retries wait for the store: %s", error)
