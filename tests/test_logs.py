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
        ("/calls/call-_%2B31612345678_abc", "/calls/call-_%2B316***78_abc"),
        ("+123456", "+123***56"),
        ("+12345", "+12345"),
        ("31612345678", "31612345678"),
    ],
)
def test_phone_numbers_are_masked(text, masked):
    assert mask(text) == masked


def record(event="update", exc_info=None, **extra):
    made = logging.LogRecord("x", logging.WARNING, "x.py", 1, event, (), exc_info)
    made.__dict__.update(extra)
    return made


def test_a_line_of_the_log_is_one_json_object():
    line = JsonLines().format(record(call_id="call-_+31612345678", status="ended", fields={"customer": "+31612345678"}))
    assert json.loads(line).keys() == {"time", "level", "event", "call_id", "status", "customer"}
    assert "\n" not in line
    assert "12345" not in line


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
    assert json.loads(line)["message"] == original
    assert json.loads(line)["error"] == "+316***78"


def test_on_a_terminal_lines_are_readable_and_no_callers_text_can_forge_one():
    line = Readable().format(record("update", call_id="call-1", error="x\n\x1b[2J00:00:00 ERROR", status=None))
    assert line.split()[1:4] == ["WARNING", "update", "call_id=call-1"]
    assert "\n" not in line and "\x1b" not in line
