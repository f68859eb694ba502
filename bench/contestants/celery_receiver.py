"""Flask + Celery on Redis, as Celery's guides show it: tasks acknowledged late, retried with a growing delay.

What it does not keep: what Redis has not saved yet when it is killed; an update whose receiver is killed between the
two commands that remember and enqueue it; for an hour, what a killed worker had in hand; and calls, of which there is
only the set of those that are active.
"""

import logging
import os
from contextlib import suppress
from functools import cache

import requests
from celery import Celery, Task
from celery.signals import setup_logging
from flask import Flask, Response, request
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis import Redis, RedisError

from bench.contestants.common import Envelope, Message, crm_request, log_event, update_key, verified

REMEMBERED = 30 * 86400  # seconds
FAILURES = (requests.RequestException, RedisError)

app = Flask(__name__, static_folder=None)
celery = Celery("receiver", broker=os.environ["REDIS_URL"])
celery.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)
store = Redis.from_url(os.environ["REDIS_URL"])
session = cache(requests.Session)  # made in each process when it is first used


@app.post("/webhooks/status-update")
def status_update() -> Response:
    body = request.get_data()
    if not verified(dict(request.headers), body):
        return Response("wrong signature, or stale", 401)
    try:
        message = Envelope.model_validate_json(body).message
    except ValidationError as error:
        return Response(error.json(include_input=False), 422, mimetype="application/json")
    key = f"update:{update_key(message.call)}"
    try:
        if store.set(key, 1, nx=True, ex=REMEMBERED):
            handle.delay(message.model_dump_json())
    except (RedisError, OperationalError):
        with suppress(RedisError):
            store.delete(key)
        return Response("could not be kept, send it again", 503, {"Retry-After": "30"})
    return Response("OK", mimetype="text/plain")


@setup_logging.connect
def log_like_a_receiver(**_: object) -> None:
    """In place of Celery's own two lines a task."""
    logging.getLogger("celery").setLevel(logging.WARNING)


@celery.task(bind=True, acks_late=True, autoretry_for=FAILURES, retry_backoff=True, max_retries=None)
def handle(task: Task, text: str) -> None:
    message = Message.model_validate_json(text)
    if task.request.retries == 0:
        log_event(message)
    track = store.sadd if message.call.status == "in-progress" else store.srem
    track("active_calls", message.call.id)
    session().post(**crm_request(message)).raise_for_status()
