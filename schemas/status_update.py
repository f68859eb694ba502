"""The provider's status update: what is kept of it, and nothing else.

Its statuses and call types are the provider's and more may come, so they stay strings.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, validate

from schemas import strict_json
from schemas.times import in_utc, isoformat

logger = logging.getLogger(__name__)

STATUS_UPDATE = "status-update"  # the type of these messages
IN_PROGRESS, ENDED, ENDED_WITH_ERROR = "in-progress", "ended", "ended-with-error"
FINAL = (ENDED, ENDED_WITH_ERROR)
MAX_METADATA_BYTES, MAX_METADATA_DEPTH = 16 * 1024, 16


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    status: str
    type: str | None = None


@dataclass(frozen=True, slots=True)
class PhoneNumber:
    """The line of ours that the call is on; on a web call every value is None."""

    number: str | None = None
    name: str | None = None
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Customer:
    number: str | None = None


@dataclass(frozen=True, slots=True)
class StatusUpdate:
    """One change of one call. `timestamp` is the provider's, `received_at` ours; both are aware, in UTC."""

    call: Call
    timestamp: datetime
    received_at: datetime
    phone_number: PhoneNumber = PhoneNumber()
    customer: Customer = Customer()
    error: str | None = None
    end_reason: str | None = None
    metadata: Mapping[str, Any] | None = None

    @property
    def is_final(self) -> bool:
        return self.call.status in FINAL

    @property
    def error_group(self) -> str | None:
        """The same for errors that differ in digits only; None where the call did not end with one."""
        return re.sub(r"[0-9]+", "#", self.error or "")[:256] if self.call.status == ENDED_WITH_ERROR else None


def storable(text: str) -> str:
    """`text` as every database takes it: lone surrogates become question marks, and NULs go."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


class _Text(fields.String):
    """A string that every database takes, or null."""

    def __init__(self) -> None:
        super().__init__(allow_none=True)

    def _deserialize(self, *args: Any, **kwargs: Any) -> str:
        return storable(super()._deserialize(*args, **kwargs))


class _Timestamp(fields.AwareDateTime):
    """ISO 8601 with a time; UTC is meant where no zone is given."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        if not isinstance(value, str) or len(value) < len("2025-12-13T12:00"):
            raise self.make_error("invalid", input=value, obj_type=self.OBJ_TYPE)
        try:
            return in_utc(super()._deserialize(value, *args, **kwargs))
        except OverflowError:
            raise ValidationError("Not a time in the years 2 to 9998 UTC.") from None


def _name(most: int) -> fields.String:
    """An identifier: printable, encodable, of 1 to `most` characters."""
    printable = validate.Regexp(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z", error="Has control characters or surrogates.")
    return fields.String(required=True, validate=[validate.Length(1, most), printable])


class _Lenient(Schema):
    """Whatever else the provider sends is left out: a parent's choice does not reach the schemas nested in it."""

    class Meta:
        unknown = EXCLUDE

    loads_into: type = dict

    @post_load
    def make(self, fields: dict[str, Any], **_: Any) -> Any:
        return self.loads_into(**fields)


class _CallSchema(_Lenient):
    loads_into = Call
    id = _name(256)
    status = _name(64)
    type = _Text()


class _PhoneNumberSchema(_Lenient):
    loads_into = PhoneNumber
    number = _Text()
    name = _Text()
    id = _Text()


class _CustomerSchema(_Lenient):
    loads_into = Customer
    number = _Text()


class _AssistantSchema(_Lenient):
    metadata = fields.Raw(allow_none=True)


class _MessageSchema(_Lenient):
    type = fields.String(required=True, validate=validate.Equal(STATUS_UPDATE))
    timestamp = _Timestamp(required=True, default_timezone=UTC)
    call = fields.Nested(_CallSchema, required=True)
    phone_number = fields.Nested(_PhoneNumberSchema, allow_none=True)
    customer = fields.Nested(_CustomerSchema, allow_none=True)
    error = _Text()
    end_reason = _Text()
    assistant = fields.Nested(_AssistantSchema, allow_none=True)


class _DocumentSchema(_Lenient):
    message = fields.Nested(_MessageSchema, required=True)


_DOCUMENT = _DocumentSchema()  # built once: 115 us otherwise


def load_update(document: Any, received_at: datetime) -> StatusUpdate:
    """The update in a decoded `document`, `{"message": {...}}`; `received_at` is aware.

    Raises marshmallow's ValidationError; `field_errors` flattens it.
    """
    message = _DOCUMENT.load(document)["message"]
    del message["type"]
    metadata = (message.pop("assistant", None) or {}).get("metadata")
    given = {name: value for name, value in message.items() if value is not None}
    return StatusUpdate(**given, received_at=received_at, metadata=_bounded(metadata, message["call"]))


def dump(update: StatusUpdate) -> dict[str, Any]:
    """The update as the provider would have sent it, less what is not kept; `load_update` takes it back."""
    call, line = update.call, update.phone_number
    message = {
        "type": STATUS_UPDATE,
        "timestamp": isoformat(update.timestamp),
        "call": {"id": call.id, "type": call.type, "status": call.status},
        "phone_number": {"number": line.number, "name": line.name, "id": line.id},
        "customer": {"number": update.customer.number},
        "error": update.error,
        "end_reason": update.end_reason,
    }
    if update.metadata is not None:
        message["assistant"] = {"metadata": update.metadata}
    return {"message": message}


def named_fields(message: Mapping[str, Any], schema: Schema = _DOCUMENT.fields["message"].schema) -> dict[str, Any]:
    """What the schema names of a decoded message, for the log, whether or not it is right: no prompts, no secrets."""
    named = {}
    for name, field in schema.fields.items():
        value = message.get(name)
        if isinstance(field, fields.Nested) and isinstance(value, dict):
            named[name] = named_fields(value, field.schema)
        elif name in message and (type(field) is fields.Raw or not isinstance(value, dict | list)):
            named[name] = value
    return named


def field_errors(error: ValidationError) -> dict[str, list[str]]:
    """What is wrong with each field, by its dotted name: `message.call.id`."""
    found: dict[str, list[str]] = {}

    def collect(messages: Any, path: tuple[str, ...]) -> None:
        if isinstance(messages, dict):
            for name, inner in messages.items():
                collect(inner, path if name == "_schema" else (*path, str(name)))
        else:
            found.setdefault(".".join(path) or "message", []).extend(messages)

    collect(error.messages, ())
    return found


def _bounded(metadata: Any, call: Call) -> Any:
    if strict_json.is_deeper(metadata, MAX_METADATA_DEPTH) or len(json.dumps(metadata)) > MAX_METADATA_BYTES:
        logger.warning("metadata dropped: too large or too deep", extra={"call_id": call.id, "status": call.status})
        return None
    return metadata
