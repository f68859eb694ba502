"""Every update, to a CRM by its URL: one of its own, or of Zapier, Make or n8n."""

from typing import Any
from urllib.parse import quote

from flask import current_app

from handlers.http import post
from schemas.status_update import StatusUpdate
from schemas.times import isoformat


def update_crm(update: StatusUpdate) -> None:
    token, header = current_app.config["CRM_TOKEN"], current_app.config["CRM_TOKEN_HEADER"]
    headers = {"Idempotency-Key": f"{quote(update.call.id, safe='')}:{quote(update.call.status, safe='')}"}
    if token:
        headers[header] = f"Bearer {token}" if header.lower() == "authorization" else token
    post(current_app.config["CRM_WEBHOOK_URL"], crm_record(update), headers)


def crm_record(update: StatusUpdate) -> dict[str, Any]:
    """What the CRM gets: made of the update alone, so that it is the same at every attempt."""
    return {
        "type": "call",
        "phone": update.customer.number,
        "status": update.call.status,
        "timestamp": isoformat(update.timestamp),
        "call_id": update.call.id,
        "direction": update.call.type.split("_")[0] if update.call.type else None,
        "line": update.phone_number.number,
        "error": update.error,
        "metadata": update.metadata,
    }
