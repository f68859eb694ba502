"""What a status update looks like as JSON. A type that nobody expected is understood where it has a plain meaning.

Only what is named here is read. A schema does not pass its choice of unknown fields on to those nested in it.
"""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from schemas.strict_json import storable
from schemas.times import read_time

STATUS_UPDATE = "status-update"  # the type of these messages
MAX_METADATA, MAX_LEVELS = 64 * 1024, 16  # bytes, and levels that arrays and objects nest
# Without these nothing can be kept; any other field can be left out.
NEEDED = {"message", "message.call", "message.call.id", "message.call.status"}


class _Text(fields.String):
    """A string; a number is its digits."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = str(value).removesuffix(".0")
        return super()._deserialize(value, *args, **kwargs)


class _Time(fields.Field[datetime]):
    """A time in any form that `read_time` takes."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        try:
            return read_time(value)
        except (TypeError, ValueError, OverflowError):
            raise ValidationError("Not a time.") from None


class _Party(fields.Nested):
    """Who is at one end of a call; what is no object is their number."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        party = value if isinstance(value, dict) else {"number": value}
        return super()._deserialize(party, *args, **kwargs)


def _name(most: int) -> _Text:
    """An identifier of 1 to `most` characters."""
    printable = validate.Regexp(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z", error="Has control characters or surrogates.")
    return _Text(required=True, validate=[validate.Length(1, most), printable])


class _Lenient(Schema):
    """Whatever is not required can be null, and what is not named is left out."""

    class Meta:
        unknown = EXCLUDE

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.allow_none = not field_obj.required


class _CallSchema(_Lenient):
    id = _name(256)
    status = _name(64)
    type = _Text()
    ended_at = _Time()


class _PartySchema(_Lenient):
    number = _Text()
    name = _Text()
    id = _Text()


def _refuse_large(metadata: Any) -> None:
    size = len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
    if size > MAX_METADATA:
        raise ValidationError(f"{size:,} bytes, over {MAX_METADATA:,}")
    try:
        storable(metadata, MAX_LEVELS)
    except ValueError:
        raise ValidationError(f"deeper than {MAX_LEVELS} levels") from None


class _AssistantSchema(_Lenient):
    metadata = fields.Raw(validate=_refuse_large)
    metadata_left_out = _Text()  # ours: the provider sends no such field


class _MessageSchema(_Lenient):
    type = fields.Raw()
    timestamp = _Time()
    call = fields.Nested(_CallSchema, required=True)
    phone_number = _Party(_PartySchema)
    customer = _Party(_PartySchema, only=["number"])
    error = _Text()
    end_reason = _Text()
    assistant = fields.Nested(_AssistantSchema)


class _DocumentSchema(_Lenient):
    message = fields.Nested(_MessageSchema, required=True)


_DOCUMENT = _DocumentSchema()  # built once: 115 us otherwise


def other_type(document: Any) -> str | None:
    """The type of a message that is no status update. One without a type is checked as a status update: the answer
    names what is wrong."""
    message = document.get("message") if isinstance(document, dict) else None
    kind = message.get("type") if isinstance(message, dict) else None
    return kind if isinstance(kind, str) and kind != STATUS_UPDATE else None


def load(document: Any) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """The fields of the message in a decoded `document`, less those that nobody sent or that cannot be read, and what
    is wrong with the latter. Raises ValidationError where one of NEEDED cannot be read."""
    try:
        return _DOCUMENT.load(document)["message"], {}
    except ValidationError as error:
        errors = field_errors(error.messages)
        if not NEEDED.isdisjoint(errors):
            raise
        readable: Any = error.valid_data
        return readable["message"], errors


def field_errors(messages: Any, path: str = "") -> dict[str, list[str]]:
    """A ValidationError's `messages` by the dotted name of each field: `message.call.id`."""
    if isinstance(messages, list):
        return {path or "message": messages}
    errors: dict[str, list[str]] = {}
    for name, inner in messages.items():
        errors |= field_errors(inner, path if name == "_schema" else f"{path}.{name}".lstrip("."))
    return errors


def named_fields(document: Mapping[str, Any], schema: Any = _DOCUMENT) -> dict[str, Any]:
    """What the schema names of a decoded document, for the log, whether or not it is right: no prompts, no secrets."""
    values: dict[str, Any] = {}
    for name, field in schema.fields.items():
        value = document.get(name)
        if isinstance(field, fields.Nested) and isinstance(value, dict):
            values[name] = named_fields(value, field.schema)
        elif name in document and (type(field) is fields.Raw or not isinstance(value, dict | list)):
            values[name] = value
    return values
