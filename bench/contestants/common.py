"""What the contestants in Python have in common: the schema, the signature, the log and what is posted to the CRM."""

import hashlib
import hmac
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import quote

from pydantic import AwareDatetime, BaseModel, StringConstraints

SECRET, CRM_URL, CRM_TIMEOUT = os.environ["WEBHOOK_SECRET"].encode(), os.environ["CRM_WEBHOOK_URL"], 3.0
TOLERANCE = 300  # seconds
Name = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]

logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
logger = logging.getLogger("receiver")


class Call(BaseModel):
    id: Name
    status: Name
    type: str | None = None


class Party(BaseModel):
    number: str | None = None


class Assistant(BaseModel):
    metadata: dict[str, Any] | None = None


class Message(BaseModel):
    type: Literal["status-update"]
    timestamp: AwareDatetime
    call: Call
    phone_number: Party = Party()
    customer: Party = Party()
    assistant: Assistant = Assistant()
    error: str | None = None
    end_reason: str | None = None


class Envelope(BaseModel):
    message: Message


def verified(headers: Mapping[str, str], body: bytes) -> bool:
    timestamp = headers.get("X-Webhook-Timestamp", "")
    signature = headers.get("X-Webhook-Signature", "").removeprefix("sha256=")
    expected = hmac.new(SECRET, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    right = hmac.compare_digest(expected.encode(), signature.encode())
    return right and timestamp.isdecimal() and abs(time.time() - int(timestamp)) <= TOLERANCE


def log_event(message: Message) -> None:
    call = message.call
    event = {"event": "update", "call_id": call.id, "status": call.status, "type": call.type}
    event |= {"line": message.phone_number.number, "customer": message.customer.number, "error": message.error}
    logger.info(re.sub(r"(\+\d{3})\d+(\d{2})", r"\1***\2", json.dumps(event)))


def update_key(call: Call) -> str:
    return f"{quote(call.id, safe='')}:{quote(call.status, safe='')}"


def crm_request(message: Message) -> dict[str, Any]:
    """The arguments of a post to the CRM, for requests as for httpx."""
    call = message.call
    record = {
        "type": "call",
        "phone": message.customer.number,
        "status": call.status,
        "timestamp": message.timestamp.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "call_id": call.id,
        "direction": call.type.split("_")[0] if call.type else None,
        "line": message.phone_number.number,
        "error": message.error,
        "metadata": message.assistant.metadata,
    }
    return {"url": CRM_URL, "json": record, "headers": {"Idempotency-Key": update_key(call)}, "timeout": CRM_TIMEOUT}
