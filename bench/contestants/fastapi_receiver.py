"""The same promises with FastAPI, uvicorn, httpx and asyncio's Redis client, as that stack is written well.

Two round trips an update: its record, and then what the handlers came to, in one transaction. What fails is retried.
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
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import httpx
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import AwareDatetime, BaseModel, StringConstraints, ValidationError
from redis.asyncio import Redis
from redis.exceptions import RedisError

SECRET, CRM_URL = os.environ["WEBHOOK_SECRET"].encode(), os.environ.get("CRM_WEBHOOK_URL")
TOLERANCE, LEASE, RETRY, OUTBOUND_TIMEOUT = 300, 60, 30, 3.0
HANDLERS = ("log_event", "track_call", "update_crm")
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
    def name(self) -> str:
        return f"{self.call.id}\t{self.call.status}"

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
    app.state.redis = Redis.from_url(os.environ["REDIS_URL"], socket_timeout=0.5, decode_responses=True)
    script = Path(__file__).with_suffix(".lua").read_text()
    app.state.script = app.state.redis.register_script(script)
    await app.state.redis.script_load(script)
    app.state.crm = httpx.AsyncClient(timeout=OUTBOUND_TIMEOUT, trust_env=False)
    retrying = asyncio.create_task(retry(app))
    yield
    retrying.cancel()
    await app.state.crm.aclose()
    await app.state.redis.aclose()


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
    now, kept = time.time(), message.model_dump_json()
    keys = [f"fastapi:call:{message.call.id}", f"fastapi:update:{message.name}"]
    try:
        new = await app.state.script(keys, ["record", now, now + LEASE, kept, message.name, *HANDLERS])
    except RedisError:
        return JSONResponse({"error": "could not be kept, send it again"}, 503, {"Retry-After": "30"})
    if new:
        await work(message, now, HANDLERS)
    return PlainTextResponse("OK")


async def work(message: Message, received_at: float, handlers: tuple[str, ...]) -> None:
    """Do what the handlers are for, and settle their rows: what failed is due again later."""
    failed = []
    if "log_event" in handlers:
        log_event(message)
    if "update_crm" in handlers and CRM_URL:
        try:
            await update_crm(message)
        except httpx.HTTPError as error:
            logger.warning(json.dumps({"event": "handler failed", "call_id": message.call.id, "error": str(error)}))
            failed.append("update_crm")
    rows = {handler: f"{message.name}\t{handler}" for handler in handlers}
    try:
        async with app.state.redis.pipeline(transaction=True) as pipeline:
            if "track_call" in handlers:
                key = f"fastapi:call:{message.call.id}"
                pipeline.evalsha(app.state.script.sha, 1, key, *track(message, received_at))
            done = [row for handler, row in rows.items() if handler not in failed]
            if done:
                pipeline.zrem("fastapi:pending", *done)
            if failed:
                pipeline.zadd("fastapi:pending", {rows[each]: time.time() + RETRY for each in failed}, xx=True)
            await pipeline.execute()
    except RedisError as error:
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


def track(message: Message, received_at: float) -> list:
    call, values = message.call, (message.error, message.call.type, message.line, message.caller)
    return ["track", call.status, message.timestamp.timestamp(), *(v or "" for v in values), call.id, received_at]


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
    """Every second, do what is due: one row at a time."""
    while True:
        await asyncio.sleep(1)
        try:
            while taken := await app.state.script([], ["take", time.time(), time.time() + LEASE]):
                row, (kept, received_at) = taken
                handler = row.rpartition("\t")[2]
                await work(Message.model_validate_json(kept), float(received_at), (handler,))
        except RedisError as error:
            logger.error(json.dumps({"event": "retries wait for the store", "error": str(error)}))
