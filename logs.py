"""The log: one JSON object a line on stdout, readable text on a terminal, and no phone number in it."""

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

NUMBERS = ("line", "customer")  # fields that are phone numbers, however they are written
_SEPARATOR = r"(?:[ ()./+-]|%2[089])"  # also as in a URL
_ALONE = r"(?<![\dA-Za-z.+-])(?<!\d[:,])"  # no part of an id, a time or an amount
_PHONE_NUMBER = re.compile(
    r"(?=[\d+(%Ss])(?:"  # makes the search twice as fast
    r"(?P<stays>[\dA-Fa-f]{8}(?:-[\dA-Fa-f]{4}){3}-|(?<!\d)\d{1,2}([./-])\d{1,2}\2\d{4}(?!\d))"  # UUIDs, 28-11-2026
    r"|\b(?P<scheme>[Ss][Ii][Pp][Ss]?:)(?P<user>[^\s@<>\"]+)(?=@)"
    rf"|(?:\+|%2B|{_ALONE}00)(?:[ ().-]{{0,2}}\d){{6,}}"  # international, in groups or not
    r"|(?<![\dA-Za-z.+-])\d{9,15}(?![\dA-Za-z]|[.-]\d)"  # digits alone
    rf"|{_ALONE}(?:\(|%28)?0(?:\d{_SEPARATOR}{{0,2}}){{8,13}}(?<=\d)(?!\d)"  # 06-12345678, (020) 123 45 67
    rf"|{_ALONE}(?:1{_SEPARATOR})?(?:\(|%28)?[2-9]\d\d{_SEPARATOR}{{1,2}}[2-9]\d\d{_SEPARATOR}\d{{4}}(?![\dA-Za-z])"
    r")",
    re.ASCII,
)


def mask(text: str) -> str:
    """`text` with every phone number and SIP user shortened: +31612345678 becomes +316***78."""
    return _PHONE_NUMBER.sub(_masked, text)


def _masked(match: re.Match[str]) -> str:
    return match[0] if match["stays"] else (match["scheme"] or "") + shortened(match["user"] or match[0])


def shortened(number: str) -> str:
    """The first three digits of a number and the last two; none of them where it has less than six, or is a name."""
    plus, digits = "".join(re.findall(r"^\+|^%2B", number)), re.sub(r"%2[089B]|\D", "", number)
    return f"{plus}{digits[:3]}***{digits[-2:]}" if len(digits) > 5 else "***"


def masked(value: Any, name: str = "") -> Any:
    """A field's value with every phone number in it shortened."""
    if isinstance(value, str):
        return shortened(value) if name in NUMBERS else mask(value)
    if isinstance(value, dict):
        return {name: masked(inner, name) for name, inner in value.items()}
    return [masked(inner) for inner in value] if isinstance(value, list) else value


LOG_FIELDS = ("call_id", "status", "handler", "error", "ms")


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `event`, then what `extra` gave: LOG_FIELDS, `fields` (a dict of more),
    and `update`, a whole message that `flask import` takes, printed as `message` and the one part that is not masked.
    """

    def format(self, record: logging.LogRecord) -> str:
        extra = vars(record)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "event": re.sub(r"\x1b\[\d+m", "", record.getMessage()),  # the colours of flask run
            **{name: extra[name] for name in LOG_FIELDS if extra.get(name) is not None},
            **extra.get("fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        line = masked(line)
        if "update" in extra:
            return json.dumps(line | {"message": extra["update"]})
        return self.render(line)

    def render(self, line: dict[str, Any]) -> str:
        return json.dumps(line)


class Readable(JsonLines):
    """The same for a person at a terminal."""

    def render(self, line: dict[str, Any]) -> str:
        traceback = line.pop("traceback", None)
        head = f"{line.pop('time')[11:19]} {line.pop('level'):7} {line.pop('event')}"
        pairs = [f"{name}={self.quote(value)}" for name, value in line.items() if value is not None]
        return " ".join([head, *pairs]) + (f"\n{traceback}" if traceback else "")

    @staticmethod
    def quote(value: Any) -> str:
        """As it is where plain, else as JSON: no caller's text can forge a line or drive the terminal."""
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return text if re.fullmatch(r"[\w.:+*%/@-]+", text) else json.dumps(text)


def configure_logging() -> None:
    """Send every logger's lines to stdout, unless logging is set up already."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(Readable() if sys.stdout.isatty() else JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
