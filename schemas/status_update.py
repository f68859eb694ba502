"""The provider's status update: what is kept of it, and nothing else. More statuses may come, so they stay strings."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from schemas.document import STATUS_UPDATE, load
from schemas.statuses import ERRORS, FINAL, IN_PROGRESS
from schemas.times import isoformat

logger = logging.getLogger(__name__)

# What two errors of one kind may differ in: ids, addresses, decimals and long numbers. SIP 486 and SIP 503 stay apart.
_VARIES = re.compile(
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|[0-9]+(?:\.[0-9]+)+"
    r"|(?<![0-9a-z])(?:0x)?[0-9a-f]{8,}(?![0-9a-z])"
    r"|[0-9]{4,}",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Call:
    """`ended_at` is set where the provider's API said that a call is over whose status does not tell."""

    id: str
    status: str
    type: str | None = None
    ended_at: datetime | None = None


class PhoneNumber(NamedTuple):
    """The line of ours that the call is on; on a web call every value is None."""

    number: str | None = None
    name: str | None = None
    id: str | None = None


class Customer(NamedTuple):
    number: str | None = None


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """One change of one call. `timestamp` is the provider's, `received_at` ours; both are aware, in UTC.

    Where the provider's time could not be read, `timestamp` is `received_at` and `timestamp_known` false.
    `metadata_left_out` says why, where metadata was sent that is not kept.
    """

    call: Call
    timestamp: datetime
    received_at: datetime
    phone_number: PhoneNumber = PhoneNumber()
    customer: Customer = Customer()
    error: str | None = None
    end_reason: str | None = None
    metadata: Mapping[str, Any] | None = None
    metadata_left_out: str | None = None
    timestamp_known: bool = True

    @property
    def starts(self) -> bool:
        return self.call.status == IN_PROGRESS

    @property
    def is_final(self) -> bool:
        """Whether it ends the call."""
        return self.call.status in FINAL or (self.call.ended_at is not None and not self.starts)

    @property
    def ends_with_error(self) -> bool:
        return self.call.status in ERRORS

    @property
    def error_group(self) -> str | None:
        """The same for errors of one kind; None where the call did not end with one."""
        return _VARIES.sub("#", self.error or "")[:256] if self.ends_with_error else None


def load_update(document: Any, received_at: datetime) -> StatusUpdate:
    """The update in a decoded `document`, `{"message": {...}}`; `received_at` is aware.

    Raises marshmallow's ValidationError where the call's id or status cannot be read; `field_errors` flattens it.
    Whatever else cannot be read is left out, with a warning.
    """
    message, errors = load(document)
    call, timestamp, assistant = Call(**message["call"]), message.get("timestamp"), message.get("assistant") or {}
    [left_out] = errors.get("message.assistant.metadata", [assistant.get("metadata_left_out")])
    if errors:
        extra = {"call_id": call.id, "status": call.status, "fields": {"wrong": errors}}
        logger.warning("left out what cannot be read", extra=extra)
    return StatusUpdate(
        call=call,
        timestamp=timestamp or received_at,
        received_at=received_at,
        phone_number=PhoneNumber(**(message.get("phone_number") or {})),
        customer=Customer(**(message.get("customer") or {})),
        error=message.get("error"),
        end_reason=message.get("end_reason"),
        metadata=assistant.get("metadata"),
        metadata_left_out=left_out,
        timestamp_known=timestamp is not None,
    )


def dump(update: StatusUpdate) -> dict[str, Any]:
    """The update as the provider would have sent it, less what is not kept; `load_update` takes it back."""
    call, line = update.call, update.phone_number
    assistant = {"metadata": update.metadata, "metadata_left_out": update.metadata_left_out}
    message: dict[str, Any] = {
        "type": STATUS_UPDATE,
        "timestamp": isoformat(update.timestamp) if update.timestamp_known else None,
        "call": {"id": call.id, "type": call.type, "status": call.status},
        "phone_number": {"number": line.number, "name": line.name, "id": line.id},
        "customer": {"number": update.customer.number},
        "error": update.error,
        "end_reason": update.end_reason,
    }
    if call.ended_at:
        message["call"]["ended_at"] = isoformat(call.ended_at)
    if any(value is not None for value in assistant.values()):
        message["assistant"] = {name: value for name, value in assistant.items() if value is not None}
    return {"message": message}
