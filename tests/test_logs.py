"""The format of the log."""

import json
import logging
import sys

import pytest

from logs import JsonLines, Readable, mask
from tests.conftest import message


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("+31612345678", "+316***78"),
        ("call-_+31612345678_abc", "call-_+316***78_abc"),
        ("call-_31612345678_abc", "call-_316***78_abc"),
        ("/calls/call-_%2B31612345678_abc", "/calls/call-_%2B316***78_abc"),
        ("+123456", "+123***56"),
        ("31612345678", "316***78"),
        ("0031612345678", "003***78"),
        ("0031 6 1234 5678", "003***78"),
        ("+31 6 12345678", "+316***78"),
        ("+31 (0)6 12.34.56.78 busy", "+310***78 busy"),
        ("0612345678", "061***78"),
        ("06-12345678", "061***78"),
        ("tel:06 12 34 56 78.", "tel:061***78."),
        ("06.12.34.56.78 is busy", "061***78 is busy"),
        ("(020) 123 45 67", "020***67"),
        ("030/1234567", "030***67"),
        ("07700 900123", "077***23"),
        (
            "Transfer to (202) 555-0199 failed, then 202-555-0198 was busy",
            "Transfer to 202***99 failed, then 202***98 was busy",
        ),
        ("(202)555-0199", "202***99"),
        ("1-202-555-0199", "120***99"),
        ("202.555.0199", "202***99"),
        ("/?search=06+1234+5678", "/?search=061***78"),
        ("/?search=%28202%29+555-0199&x=1", "/?search=202***99&x=1"),
        ("asked 31612345678.", "asked 316***78."),
        ("sip:31612345678@x", "sip:316***78@x"),
        ("<SIPS:+12025550177;phone-context=x@10.0.0.1:5061> hung up", "<SIPS:+120***77@10.0.0.1:5061> hung up"),
        ("sip:alice@sip.example.com and sip:1001@pbx", "sip:***@sip.example.com and sip:***@pbx"),
    ],
)
def test_phone_numbers_and_sip_users_are_masked(text, masked):
    assert mask(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "+12345",
        "2025-12-13T12:05:00.000+00:00",
        "2025-12-13T12:05:00.000Z and 2025-12-13 08:02:01",
        "28-11-2026 08:15, 01/02/2026 1200, 01.02.2026 0900",
        "at 08:05:01.123456 and 17:15:00.551799",
        "after 1765627200.123456789 s",
        "0.123456789 and -0.05 and 1.5e-05",
        "5c4d030f-43e3-4e65-899e-814852166012",
        "01234567-8901-2345-6789-012345678901",
        "sha256=" + "1234567890abcdef" * 4,
        "127.0.0.1:8000 answered 503 within 3000 ms",
        "192.168.100.200:54321, 0.0.0.0:8000 and [2001:db8::0203:4567]:8000",
        "Python/3.13.0 Chrome/131.0.6778.85 v2024.10.05",
        "$1,234,567.89, 12.345.678,90 EUR, 12 345 678 kr, 0,123,456,789",
        "SIP 486 Busy here, SIP/2.0 503, 404 500 1234567",
        "gossip:alice@x, sip:example.com, call-1, 24 of 1000",
    ],
)
def test_what_is_no_number_stays(text):
    assert mask(text) == text


def record(event="update", exc_info=None, **extra):
    return logging.makeLogRecord({"levelname": "WARNING", "msg": event, "exc_info": exc_info, **extra})


def test_a_line_of_the_log_is_one_json_object():
    line = JsonLines().format(record(call_id="call-_+31612345678", status="ended", fields={"text": "two\nlines"}))
    assert json.loads(line).keys() == {"time", "level", "event", "call_id", "status", "text"}
    assert "\n" not in line and "12345" not in line


@pytest.mark.parametrize(
    "number", ["06-12 34 56 78", "612345", "tel 06 1234-5678", "٠١٢٣٤٥٦٧٨", "sip:1001@x", "alice@x"]
)
@pytest.mark.parametrize("formatter", [JsonLines(), Readable()])
def test_fields_that_are_numbers_are_masked_however_they_are_written(formatter, number):
    line = formatter.format(record(fields={"line": number, "customer": number, "ms": 1234567890123}))
    assert number not in line and json.dumps(number)[1:-1] not in line
    assert line.count("***") == 2 and "1234567890123" in line


def test_a_traceback_is_part_of_the_line_and_masked():
    try:
        raise ValueError("+31612345678")
    except ValueError:
        line = JsonLines().format(record("handler failed", sys.exc_info()))
    assert "\n" not in line
    assert "ValueError: +316***78" in json.loads(line)["traceback"]


@pytest.mark.parametrize("formatter", [JsonLines(), Readable()])
def test_a_message_for_import_is_json_and_unmasked_and_nothing_else_is(formatter):
    original = message("ended", "call-_+31612345678")["message"]
    line = formatter.format(record("not kept", update=original, fields={"error": "+31612345678"}))
    entry = json.loads(line)
    assert (entry["message"], entry["error"]) == (original, "+316***78")


def test_on_a_terminal_lines_are_readable_and_no_callers_text_can_forge_one():
    line = Readable().format(record("update", call_id="call-1", error="x\n\x1b[2J00:00:00 ERROR", status=None))
    assert line.split()[1:4] == ["WARNING", "update", "call_id=call-1"]
    assert "\n" not in line and "\x1b" not in line
