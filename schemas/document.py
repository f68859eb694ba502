"""What a status update looks like as JSON. A type that nobody expected is understood where it has a plain meaning.

Only what is named here is read. A schema does not pass its choice of unknown fields on to those nested in it.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from schemas.times import read_time

STATUS_UPDATE = "status-update"  # the type of these messages
# Without these nothing can be kept; any other field can be left out.
NEEDED = {"message", "message.type", "message.call", "message.call.id", "message.call.status"}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class _Text(fields.String):
    """A string; a number is its digits."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if _is_number(value):
            value = str(value).removesuffix(".0")
        return super()._deserialize(value, *args, **kwargs)


class _Timestamp(fields.Field[datetime]):
    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> datetime:
        try:
            return read_time(value)
        except (ValueError, OverflowError):
            raise ValidationError("Not a time.") from None


class _Party(fields.Nested):
    """Who is at one end of a call; a text or number alone is their number."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        party = {"number": value} if isinstance(value, str) or _is_number(value) else value
        return super()._deserialize(party, *args, **kwargs)


def _text() -> _Text:
    return _Text(allow_none=True)


def _name(most: int) -> _Text:
    """An identifier of 1 to `most` characters."""
    printable = validate.Regexp(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z", error="Has control characters or surrogates.")
    return _Text(required=True, validate=[validate.Length(1, most), printable])


class _Lenient(Schema):
    class Meta:
        unknown = EXCLUDE


class _CallSchema(_Lenient):
    id = _name(256)
    status = _name(64)
    type = _text()
    ended_at = _Timestamp(allow_none=True)


class _PhoneNumberSchema(_Lenient):
    number = _text()
    name = _text()
    id = _text()


class _CustomerSchema(_Lenient):
    number = _text()


class _AssistantSchema(_Lenient):
    metadata = fields.Raw(allow_none=True)
    metadata_left_out = _text()  # ours: the provider sends no such field


def _refuse_other_types(kind: Any) -> None:
    """Raise ValidationError for another type of message; what is no text names none."""
    if isinstance(kind, str) and kind != STATUS_UPDATE:
        raise ValidationError(f"Must be equal to {STATUS_UPDATE}.")


class _MessageSchema(_Lenient):
    type = fields.Raw(allow_none=True, validate=_refuse_other_types)
    timestamp = _Timestamp(allow_none=True)
    call = fields.Nested(_CallSchema, required=True)
    phone_number = _Party(_PhoneNumberSchema, allow_none=True)
    customer = _Party(_CustomerSchema, allow_none=True)
    error = _text()
    end_reason = _text()
    assistant = fields.Nested(_AssistantSchema, allow_none=True)


class _DocumentSchema(_Lenient):
    message = fields.Nested(_MessageSchema, required=True)


_DOCUMENT, _MESSAGE = _DocumentSchema(), _MessageSchema()  # built once: 115 us otherwise


def load(document: Any) -> dict[str, Any]:
    """The fields of the message in a decoded `document`, less those that nobody sent. Raises ValidationError."""
    message: dict[str, Any] = _DOCUMENT.load(document)["message"]
    return message


def without(document: dict[str, Any], path: list[str]) -> dict[str, Any]:
    """`document` less what is at `path`."""
    first, *rest = path
    shorter = {name: value for name, value in document.items() if name != first}
    return shorter | {first: without(document[first], rest)} if rest else shorter


def named_fields(message: Mapping[str, Any], schema: Any = _MESSAGE) -> dict[str, Any]:
    """What the schema names of a decoded message, for the log, whether or not it is right: no prompts, no secrets."""
    named: dict[str, Any] = {}
    for name, field in schema.fields.items():
        value = message.get(name)
        if isinstance(field, fields.Nested) and isinstance(value, dict):
            named[name] = named_fields(value, field.schema)
        elif name in message and (type(field) is fields.Raw or not isinstance(value, dict | list)):
            named[name] = value
    return named
