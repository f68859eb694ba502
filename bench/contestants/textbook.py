"""The receiver that tutorials write: Marshmallow, one Redis command, and no promise."""

import logging
import os

import redis
from flask import Flask, Response, request
from marshmallow import EXCLUDE, Schema, fields

logging.basicConfig(level=logging.INFO)
app = Flask(__name__)
store = redis.Redis.from_url(os.environ["REDIS_URL"])


class Lenient(Schema):
    class Meta:
        unknown = EXCLUDE


class CallSchema(Lenient):
    id = fields.String(required=True)
    type = fields.String()
    status = fields.String(required=True)


class PhoneNumberSchema(Lenient):
    number = fields.String(allow_none=True)
    name = fields.String(allow_none=True)


class CustomerSchema(Lenient):
    number = fields.String(allow_none=True)


class MessageSchema(Lenient):
    type = fields.String(required=True)
    timestamp = fields.DateTime(required=True)
    call = fields.Nested(CallSchema, required=True)
    phone_number = fields.Nested(PhoneNumberSchema)
    customer = fields.Nested(CustomerSchema)
    error = fields.String()


class EnvelopeSchema(Lenient):
    message = fields.Nested(MessageSchema, required=True)


envelope = EnvelopeSchema()


@app.post("/webhooks/status-update")
def status_update() -> Response:
    message = envelope.load(request.get_json())["message"]
    call = message["call"]
    if call["status"] == "in-progress":
        store.sadd("active_calls", call["id"])
    else:
        store.srem("active_calls", call["id"])
    app.logger.info("call %s is %s", call["id"], call["status"])
    return Response("OK", mimetype="text/plain")
