"""Flask + Celery on Redis, as Celery's guides show it: tasks acknowledged late, and retried with a growing delay.

The receiver verifies, leaves repeats out and enqueues; the worker logs, tracks and posts to the CRM.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import sys
import time
from functools import cache
from urllib.parse import quote

import requests
from celery import Celery, Task
from celery.signals import setup_logging
from flask import Flask, Response, abort, request
from kombu.exceptions import OperationalError
from marshmallow import ValidationError
from redis import Redis, RedisError

from bench.contestants.textbook import envelope

SECRET, CRM_URL = os.environ["WEBHOOK_SECRET"].encode(), os.environ["CRM_WEBHOOK_URL"]
TOLERANCE, REMEMBERED, OUTBOUND_TIMEOUT = 300, 30 * 86400, 3.0

app = Flask(__name__, static_folder=None)
celery = Celery("receiver", broker=os.environ["REDIS_URL"])
celery.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
store = Redis.from_url(os.environ["REDIS_URL"])
session = cache(requests.Session)  # made in each process when it is first used
logger = logging.getLogger("receiver")


@app.post("/webhooks/status-update")
def status_update() -> Response:
    verify(request.get_data())
    try:
        message = envelope.load(request.get_json())["message"]
    except ValidationError as error:
        return Response(json.dumps({"error": error.messages}), 422, mimetype="application/json")
    key = f"update:{update_key(message['call'])}"
    try:
        if store.set(key, 1, nx=True, ex=REMEMBERED):
            enqueue(key, message)
    except (RedisError, OperationalError):
        return Response("could not be kept, send it again", 503, {"Retry-After": "30"})
    return Response("OK", mimetype="text/plain")


def verify(body: bytes) -> None:
    timestamp = request.headers.get("X-Webhook-Timestamp", "")
    given = request.headers.get("X-Webhook-Signature", "").removeprefix("sha256=")
    expected = hmac.new(SECRET, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    if not timestamp.isdecimal() or not hmac.compare_digest(expected.encode(), given.encode()):
        abort(401, "wrong signature")
    if abs(time.time() - int(timestamp)) > TOLERANCE:
        abort(401, "stale")


def update_key(call: dict) -> str:
    return f"{quote(call['id'], safe='')}:{quote(call['status'], safe='')}"


def enqueue(key: str, message: dict) -> None:
    try:
        handle.delay(message)
    except OperationalError:
        store.delete(key)
        raise


@setup_logging.connect
def log_like_a_receiver(**_) -> None:
    """In place of Celery's own two lines a task."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("celery").setLevel(logging.WARNING)


@celery.task(
    bind=True,
    acks_late=True,
    autoretry_for=(requests.RequestException, RedisError),
    retry_backoff=True,
    max_retries=None,
)
def handle(task: Task, message: dict) -> None:
    if task.request.retries == 0:
        log_event(message)
    track_call(message["call"])
    update_crm(message)


def log_event(message: dict) -> None:
    call, customer, line = (message.get(name) or {} for name in ("call", "customer", "phone_number"))
    record = {
        "event": "update",
        "call_id": call["id"],
        "status": call["status"],
        "type": call.get("type"),
        "line": line.get("number"),
        "customer": customer.get("number"),
        "error": message.get("error"),
    }
    logger.info(re.sub(r"(\+\d{3})\d+(\d{2})", r"\1***\2", json.dumps(record)))


def track_call(call: dict) -> None:
    change = store.sadd if call["status"] == "in-progress" else store.srem
    change("active_calls", call["id"])


def update_crm(message: dict) -> None:
    call, customer, line = (message.get(name) or {} for name in ("call", "customer", "phone_number"))
    record = {
        "type": "call",
        "phone": customer.get("number"),
        "status": call["status"],
        "timestamp": message["timestamp"].isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "call_id": call["id"],
        "direction": call["type"].split("_")[0] if call.get("type") else None,
        "line": line.get("number"),
        "error": message.get("error"),
    }
    headers = {"Idempotency-Key": update_key(call)}
    session().post(CRM_URL, json=record, headers=headers, timeout=OUTBOUND_TIMEOUT).raise_for_status()
