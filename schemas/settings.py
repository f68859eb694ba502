"""The settings: what each may be, and its default. Every message is the end of a sentence that starts with the name,
and shows nothing of the value, which may be secret."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from marshmallow import Schema, ValidationError, fields, validate

SHORTEST_SECRET = 8  # characters


def _secrets(text: str) -> tuple[str, ...]:
    secrets = tuple(filter(None, map(str.strip, text.split(","))))
    if not secrets or min(map(len, secrets)) < SHORTEST_SECRET:
        raise ValidationError(
            f"must be secrets of {SHORTEST_SECRET} characters or more, separated by commas:"
            " v1,whsec_... is two, and with the first anybody signs"
        )
    return secrets


def is_url(text: str, *schemes: str) -> bool:
    """Whether `text` is a URL with one of `schemes`. Unlike marshmallow's it may name a host such as my_crm."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in schemes and bool(parts.hostname or parts.scheme == "unix") and parts.port != 0
    except ValueError:
        return False
    return valid and not re.search(r"[\s\x00-\x1f]", text)


def _url(*schemes: str) -> Callable[[str], None]:
    def check(text: str) -> None:
        if not is_url(text, *schemes):
            starts = " or ".join(f"{scheme}://" for scheme in schemes)
            raise ValidationError(f"must be a URL with a valid host and port that starts with {starts}")

    return check


def _redis_url(text: str) -> None:
    _url("redis", "rediss", "unix")(text)
    from redis import ConnectionPool  # only where it is used

    try:
        pool = ConnectionPool.from_url(text)
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing yet
    except (TypeError, ValueError):
        raise ValidationError("must be a URL whose options redis-py knows") from None


def _database_url(text: str) -> None:
    if not text.startswith(("postgres://", "postgresql://")):
        raise ValidationError("must start with postgres:// or postgresql:// (for a file, set SQLITE_PATH)")
    from psycopg import ProgrammingError  # only where it is used
    from psycopg.conninfo import conninfo_to_dict

    try:
        ports = str(conninfo_to_dict(text).get("port", "")).split(",")  # one a host
        valid = all(0 < int(port) < 65536 for port in filter(None, ports))
    except (ProgrammingError, ValueError):
        valid = False
    if not valid:
        raise ValidationError("must be a URL of PostgreSQL, as postgresql://user:password@host:5432/name")


def _text(check: Callable[[str], Any] | None = None, default: str | None = None) -> fields.String:
    return fields.String(load_default=default, validate=check)


def _flag(default: bool) -> fields.Boolean:
    return fields.Boolean(load_default=default, error_messages={"invalid": "must be true or false"})


def _number(least: int, most: int, default: int | None = None) -> fields.Integer:
    message = f"must be a whole number from {least} to {most}"
    in_range = validate.Range(least, most, error=message)
    return fields.Integer(load_default=default, error_messages={"invalid": message}, validate=in_range)


WEB = _url("http", "https")
TOKEN = validate.Regexp(r"[!-~]+\Z", error="must be printable ASCII without spaces, as it is sent in a header")
HEADER = validate.Regexp(r"[\w!#$%&'*+.^`|~-]+\Z", re.ASCII, error="must be the name of a header")


class Settings(Schema):
    WEBHOOK_SECRET = fields.Function(deserialize=_secrets, load_default=())
    ALLOW_UNSIGNED = _flag(False)
    WEBHOOK_TOLERANCE = _number(0, 86400, 300)
    SQLITE_PATH = _text(default="instance/calls.db")
    DATABASE_URL = _text(_database_url)
    REDIS_URL = _text(_redis_url)
    REDIS_TLS_VERIFY = _flag(True)
    CRM_WEBHOOK_URL = _text(WEB)
    CRM_TOKEN = _text(TOKEN)
    CRM_TOKEN_HEADER = _text(HEADER, default="Authorization")
    SLACK_WEBHOOK_URL = _text(WEB)
    ALERT_INTERVAL = _number(0, 86400, 60)
    ALERT_SILENCE = _number(1, 8760)
    PUBLIC_URL = _text(WEB)
    DASHBOARD_PASSWORD = _text()
    PROVIDER_API_KEY = _text(TOKEN)
    PROVIDER_API_URL = _text(WEB, default="https://api.hmsovereign.com/api/v1")
    RETENTION_DAYS = _number(2, 3650, 30)
