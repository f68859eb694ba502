import json
import logging
from datetime import UTC, datetime

import pytest
from marshmallow import ValidationError

from schemas.status_update import Call, Customer, PhoneNumber, dump, field_errors, load_update
from schemas.strict_json import parse_json
from tests.conftest import message, payload, update

RECEIVED = datetime(2026, 1, 1, tzinfo=UTC)


def test_it_loads_what_the_provider_sends():
    loaded = load_update(payload("ended_with_error"), RECEIVED)
    assert loaded.call == Call("5c4d030f-43e3-4e65-899e-8148521e660f", "ended-with-error", "inbound_phone_call")
    assert loaded.phone_number == PhoneNumber("+31850835037", "HMS Sovereign Demo")
    assert loaded.customer == Customer("+31612345678")
    assert loaded.timestamp == datetime(2025, 12, 13, 12, 5, tzinfo=UTC)
    assert loaded.error == "STT connection failed"
    assert loaded.received_at == RECEIVED


def test_unknown_fields_are_no_error_at_any_level():
    document = message(new=1)
    document["new"] = 1
    for part in ("call", "phone_number", "customer"):
        document["message"][part]["new"] = {"deep": 1}
    document["message"]["assistant"] = {"new": 1}
    assert load_update(document, RECEIVED) == load_update(message(), RECEIVED)


def test_optional_fields_can_be_null_or_missing():
    document = message(error=None, end_reason=None, assistant=None, phone_number=None)
    del document["message"]["customer"]
    for each in (document, payload("web_call_in_progress")):
        loaded = load_update(each, RECEIVED)
        assert (loaded.phone_number, loaded.customer, loaded.metadata) == (PhoneNumber(), Customer(), None)


@pytest.mark.parametrize("name", ["in_progress", "ended_with_error", "ended_with_assistant", "web_call_in_progress"])
def test_what_is_dumped_loads_again(name):
    loaded = load_update(payload(name), RECEIVED)
    assert load_update(json.loads(json.dumps(dump(loaded))), RECEIVED) == loaded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-12-13T12:00:00.123Z", datetime(2025, 12, 13, 12, 0, 0, 123000, UTC)),
        ("2025-12-13T14:00:00+02:00", datetime(2025, 12, 13, 12, tzinfo=UTC)),
        ("2025-12-13T12:00:00", datetime(2025, 12, 13, 12, tzinfo=UTC)),
    ],
)
def test_a_timestamp_is_in_utc_whatever_its_zone(text, expected):
    assert update(timestamp=text).timestamp == expected


def wrong_fields(document):
    with pytest.raises(ValidationError) as caught:
        load_update(document, RECEIVED)
    return sorted(field_errors(caught.value))


@pytest.mark.parametrize("wrong", [1765627200, None, "", "2025-12-13", "yesterday at noon", "2025-02-30T12:00:00Z"])
def test_it_refuses_what_is_no_timestamp(wrong):
    assert wrong_fields(message(timestamp=wrong)) == ["message.timestamp"]


@pytest.mark.parametrize(
    "end", ["0001-01-01T00:00:00+14:00", "0001-12-31T23:59:59Z", "9999-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"]
)
def test_it_refuses_a_timestamp_at_an_end_of_the_calendar(end):
    assert wrong_fields(message(timestamp=end)) == ["message.timestamp"]


@pytest.mark.parametrize("wrong", ["", "x" * 257, "a\0b", "a\nb", "b\n", "a\x7fb", "\ud800", 5, None])
def test_it_refuses_an_id_that_is_no_name(wrong):
    assert wrong_fields(message(call_id=wrong)) == ["message.call.id"]


def test_an_id_may_have_256_characters_and_a_status_64():
    assert update("s" * 64, "é" * 256).call == Call("é" * 256, "s" * 64, "inbound_phone_call")
    assert wrong_fields(message("s" * 65)) == ["message.call.status"]


def test_it_names_every_wrong_field():
    document = {"message": {"type": "x", "call": {"status": 1}, "customer": "+31", "error": {}}}
    names = ["call.id", "call.status", "customer", "error", "timestamp", "type"]
    assert wrong_fields(document) == [f"message.{name}" for name in names]


def test_texts_lose_nuls_and_lone_surrogates():
    loaded = update("ended-with-error", error="a\ud800b\0", phone_number={"name": "Front\0 desk"})
    assert (loaded.error, loaded.phone_number.name) == ("a?b", "Front desk")


@pytest.mark.parametrize(
    ("error", "group"),
    [
        ("SIP 486", "SIP 486"),
        ("SIP 503", "SIP 503"),
        ("SIP/2.0 486 Busy here", "SIP/# 486 Busy here"),
        ("no answer after 30 s", "no answer after 30 s"),
        ("no answer after 30.25 s", "no answer after # s"),
        ("timed out after 1500ms", "timed out after #ms"),
        ("at 1765627200.123456", "at #"),
        ("10.0.0.12:8000 refused", "#:# refused"),
        ("+31612345678 is busy", "+# is busy"),
        ("5c4d030f-43e3-4e65-899e-814852166012 not found", "# not found"),
        ("request req_5F3A9C2B at 0x7ffd5c3a", "request req_# at #"),
        ("the feedback faded: deadbeef", "the feedback faded: #"),
        ("7f3a is short, v12 is a version", "7f3a is short, v12 is a version"),
        ("x" * 300, "x" * 256),
        (None, ""),
    ],
)
def test_errors_of_one_kind_are_one_group(error, group):
    assert update("ended-with-error", error=error).error_group == group


def test_only_calls_that_ended_with_an_error_are_in_a_group():
    for status in ("failed", "rejected", "insufficient-credits"):
        assert update(status, error="SIP 486").error_group == "SIP 486"
    assert update("ended", error="x").error_group is None


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


@pytest.mark.parametrize("metadata", [{"x": "y" * 16 * 1024}, {"x": nested(16)}, {"x": nested(500)}])
def test_metadata_too_large_or_too_deep_is_dropped_with_a_warning(metadata, caplog):
    assert update(assistant={"metadata": metadata}).metadata is None
    assert [(record.levelno, record.call_id) for record in caplog.records] == [(logging.WARNING, "call-1")]


def test_metadata_of_16_levels_is_kept():
    metadata = {"x": nested(15)}
    assert update(assistant={"metadata": metadata}).metadata == metadata


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e400}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)
def test_it_refuses_what_is_not_strict_json(body):
    with pytest.raises(ValueError):
        parse_json(body)


def test_it_takes_64_levels_and_the_last_of_duplicate_keys():
    assert parse_json(b"[" * 64 + b"]" * 64) == nested(64)
    assert parse_json(b"[" + b"[]," * 100 + b"[]]") == [[]] * 101
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}
