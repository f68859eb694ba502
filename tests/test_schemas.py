import json
import logging
from datetime import UTC, datetime

import pytest
from marshmallow import ValidationError

from schemas.document import field_errors
from schemas.status_update import Call, Customer, PhoneNumber, StatusUpdate, dump, load_update
from schemas.strict_json import parse_json
from schemas.times import iso, parse_time
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


def test_only_the_calls_id_and_status_are_needed(caplog):
    loaded = load_update({"message": {"call": {"id": "a", "status": "ended"}}}, RECEIVED)
    assert loaded == StatusUpdate(Call("a", "ended"), RECEIVED, RECEIVED, timestamp_known=False)
    assert caplog.records == []


DUMPED = [payload(name) for name in ("in_progress", "ended_with_error", "ended_with_assistant", "web_call_in_progress")]
DUMPED += [message(timestamp="soon"), message("completed", call={"ended_at": 1765627200})]
DUMPED += [message(assistant={"metadata": {"x": "y" * 100_000}})]


@pytest.mark.parametrize("document", DUMPED)
def test_what_is_dumped_loads_again(document, caplog):
    loaded = load_update(document, RECEIVED)
    caplog.clear()
    assert load_update(json.loads(json.dumps(dump(loaded))), RECEIVED) == loaded
    assert caplog.records == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-12-13T12:00:00.123Z", datetime(2025, 12, 13, 12, 0, 0, 123000, UTC)),
        ("2025-12-13T14:00:00+02:00", datetime(2025, 12, 13, 12, tzinfo=UTC)),
        ("2025-12-13T12:00:00", datetime(2025, 12, 13, 12, tzinfo=UTC)),
        (1765627200, datetime(2025, 12, 13, 12, tzinfo=UTC)),
        (1765627200.5, datetime(2025, 12, 13, 12, 0, 0, 500000, UTC)),
        (1765627200123, datetime(2025, 12, 13, 12, 0, 0, 123000, UTC)),
        ("1765627200", datetime(2025, 12, 13, 12, tzinfo=UTC)),
        ("1765627200123", datetime(2025, 12, 13, 12, 0, 0, 123000, UTC)),
    ],
)
def test_a_timestamp_is_in_utc_whatever_its_zone_and_form(text, expected, caplog):
    loaded = update(timestamp=text)
    assert (loaded.timestamp, loaded.timestamp_known) == (expected, True)
    assert caplog.records == []


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-01:00", "9999-12-31T23:59:59.999999Z"]
)
def test_a_time_that_can_be_typed_can_be_shown(text):
    assert iso(parse_time("0001-01-01").timestamp()) == "0001-01-01T00:00:00.000Z"
    with pytest.raises(ValueError):
        parse_time(text)


def wrong_fields(document):
    with pytest.raises(ValidationError) as caught:
        load_update(document, RECEIVED)
    return sorted(field_errors(caught.value.messages))


UNREADABLE = [
    "",
    "2025-12-13",
    "yesterday at noon",
    "2025-02-30T12:00:00Z",
    "202512131200",
    5,
    -1,
    10**12 - 1,
    10**14,
    10**400,
]
UNREADABLE += [10**400, True, [], {}, ["2025-12-13T12:00:00Z"]]
UNREADABLE += ["0001-01-01T00:00:00+14:00", "0001-12-31T23:59:59Z", "9999-01-01T00:00:00Z", "9999-12-31T23:59:59-01:00"]


@pytest.mark.parametrize("wrong", UNREADABLE)
def test_a_timestamp_that_cannot_be_read_is_the_time_of_receipt(wrong, caplog):
    loaded = load_update(message(timestamp=wrong), RECEIVED)
    assert (loaded.timestamp, loaded.timestamp_known) == (RECEIVED, False)
    [warning] = caplog.records
    assert (warning.levelname, warning.call_id, [*warning.fields["wrong"]]) == (
        "WARNING",
        "call-1",
        ["message.timestamp"],
    )


@pytest.mark.parametrize("number", [31612345678, 31612345678.0, "31612345678"])
def test_a_number_is_its_digits_and_a_party_that_is_no_object_is_its_number(number, caplog):
    fields = message(phone_number=number, customer=number, error=486, end_reason=1.5)["message"]
    for each in (fields, fields | {"phone_number": {"number": number}, "customer": {"number": number}}):
        loaded = load_update({"message": each}, RECEIVED)
        assert (loaded.phone_number, loaded.customer) == (PhoneNumber("31612345678"), Customer("31612345678"))
        assert (loaded.error, loaded.end_reason) == ("486", "1.5")
    assert update(error=10**400).error == str(10**400)
    assert caplog.records == []


def test_what_cannot_be_understood_is_left_out_with_one_warning_that_names_it(caplog):
    document = message("ended-with-error", timestamp=[], error={"code": 486}, end_reason=True, assistant="x")
    document["message"] |= {"type": 5, "phone_number": {"number": [], "name": "Front desk"}, "customer": [1]}
    document["message"]["call"]["type"] = {}
    loaded = load_update(document, RECEIVED)
    assert (loaded.call, loaded.customer) == (Call("call-1", "ended-with-error"), Customer())
    assert (loaded.phone_number, loaded.error) == (PhoneNumber(None, "Front desk"), None)
    [warning] = caplog.records
    names = ["assistant", "call.type", "customer.number", "end_reason", "error", "phone_number.number", "timestamp"]
    assert sorted(warning.fields["wrong"]) == [f"message.{name}" for name in names]
    assert document["message"]["error"] == {"code": 486}


@pytest.mark.parametrize("wrong", ["", "x" * 257, "a\0b", "a\nb", "b\n", "a\x7fb", "\ud800", True, None, [], {}])
def test_it_refuses_an_id_that_is_no_name(wrong):
    assert wrong_fields(message(call_id=wrong)) == ["message.call.id"]


def test_an_id_may_have_256_characters_and_a_status_64():
    assert update("s" * 64, "é" * 256).call == Call("é" * 256, "s" * 64, "inbound_phone_call")
    assert wrong_fields(message("s" * 65)) == ["message.call.status"]


def test_it_names_every_wrong_field():
    document = {"message": {"type": "x", "timestamp": 5, "call": {"status": []}, "customer": [], "error": {}}}
    names = ["call.id", "call.status", "customer.number", "error", "timestamp"]
    assert wrong_fields(document) == [f"message.{name}" for name in names]


@pytest.mark.parametrize("document", [{}, [], "x", None, {"message": []}, {"message": {"call": "a"}}])
def test_it_refuses_what_has_no_call(document):
    assert wrong_fields(document) in (["message"], ["message.call"])


@pytest.mark.parametrize(
    ("status", "starts", "is_final", "ends_with_error"),
    [
        ("in-progress", True, False, False),
        *((status, False, False, False) for status in ("ringing", "connecting", "transferred", "queued", "")),
        ("ended", False, True, False),
        *((status, False, True, True) for status in ("ended-with-error", "failed", "rejected", "insufficient-credits")),
    ],
)
def test_what_a_status_does_to_a_call(status, starts, is_final, ends_with_error):
    one = StatusUpdate(Call("a", status), RECEIVED, RECEIVED, error="SIP 486")
    assert (one.starts, one.is_final, one.ends_with_error) == (starts, is_final, ends_with_error)
    assert one.error_group == ("SIP 486" if ends_with_error else None)


def test_a_call_of_another_status_is_over_where_the_provider_says_when():
    over = {"ended_at": "2025-12-13T12:05:00Z"}
    assert update("completed", call=over).is_final
    assert not update("completed", call={"ended_at": None}).is_final
    assert not update("in-progress", call=over).is_final


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


FULL = 64 * 1024 - len('{"x":""}')


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"x": "y" * (FULL + 1)}, "65,537 bytes, over 65,536"),
        ({"x": "\u00e9" * (FULL // 2 + 1)}, "65,538 bytes, over 65,536"),
        ({"x": nested(16)}, "deeper than 16 levels"),
    ],
)
def test_metadata_that_is_too_large_or_too_deep_is_left_out_with_a_warning(metadata, reason, caplog):
    loaded = update(assistant={"metadata": metadata})
    assert (loaded.metadata, loaded.metadata_left_out) == (None, reason)
    assert [(record.levelno, record.call_id) for record in caplog.records] == [(logging.WARNING, "call-1")]
    assert dump(loaded)["message"]["assistant"] == {"metadata_left_out": reason}


@pytest.mark.parametrize("metadata", [{"x": nested(15)}, {"x": "y" * FULL}, {"x": "\u00e9" * (FULL // 2)}, [], "", 0])
def test_metadata_of_64_kib_and_16_levels_is_kept(metadata):
    loaded = update(assistant={"metadata": metadata})
    assert (loaded.metadata, loaded.metadata_left_out) == (metadata, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}\0",
        "{}".encode("utf-16"),
        b'{"a": nan}',
        b'{"a": 1,}',
        b"9" * 5000,
        b"[" * 65 + b"]" * 65,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 65 + b"1" + b"}" * 65,
    ],
)
def test_it_refuses_what_is_no_json(body):
    with pytest.raises(ValueError):
        parse_json(body)


def test_it_takes_64_levels_and_the_last_of_duplicate_keys():
    assert parse_json(b"[" * 64 + b"]" * 64) == nested(64)
    assert parse_json(b"[" + b"[]," * 100 + b"[]]") == [[]] * 101
    assert parse_json(b'{"a": 1, "a": 2}') == {"a": 2}


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        *((value, None) for value in (b"NaN", b"Infinity", b"-Infinity", b"1e400", b"-1e400")),
        (b"1e300", 1e300),
        (b"9" * 400, int("9" * 400)),
    ],
)
def test_what_no_other_reader_takes_for_a_number_is_null(sent, expected):
    assert parse_json(b'{"a": [' + sent + b", 1.5, 12345678901234567890]}") == {
        "a": [expected, 1.5, 12345678901234567890]
    }


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"a\0b", "a\ufffdb"),
        (rb"a\u0000b", "a\ufffdb"),
        (rb"a\ud83d", "a\ufffd"),
        (rb"\uDE00b", "\ufffdb"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\\u0000 \\ud83d", r"\u0000 \ud83d"),
        (b"\xff\xed\xa0\xbd", "\ufffd" * 4),
        ("\u00e9\U0001f600\ufffd".encode(), "\u00e9\U0001f600\ufffd"),
    ],
)
def test_nuls_half_surrogates_and_what_is_no_utf_8_are_replaced_in_names_and_values_at_any_depth(sent, expected):
    assert parse_json(b'\xef\xbb\xbf{"%b": [{"x": ["%b"]}]}' % (sent, sent)) == {expected: [{"x": [expected]}]}
