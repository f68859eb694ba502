"""The settings: what each may be, and its default. Every message is the end of a sentence that starts with the name,
and shows nothing of the value, which may be secret."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from marshmallow import Schema, ValidationError, fields, post_load, validate

SHORTEST_SECRET = 8  # characters
POSTGRES_URL = re.compile(r"(postgres(?:ql)?://(?:[^@/]*@)?)([^?]*)\??(.*)")  # login, place, options


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
    parts = POSTGRES_URL.fullmatch(text)
    if not parts:
        raise ValidationError("must start with postgres:// or postgresql:// (for a file, set SQLITE_PATH)")
    login, place, options = parts.groups()
    if "@" in place + options or _conninfo(login) is None:
        raise ValidationError("must have its user and password percent-encoded: %40 for @, %2F for /, %25 for %")
    address = _conninfo(login + place)
    if address is None or not all(map(_is_port, str(address.get("port", 5432)).split(","))):
        raise ValidationError("must have a valid host and port, as postgresql://user:password@host:5432/name")
    if _conninfo(known_options(text)[0]) is None:
        raise ValidationError("must have options that PostgreSQL takes, as ?sslmode=require&connect_timeout=2")


def _conninfo(url: str) -> dict[str, Any] | None:
    """The parts of a URL of PostgreSQL; None where it is none."""
    from psycopg import ProgrammingError  # only where it is used
    from psycopg.conninfo import conninfo_to_dict

    try:
        return conninfo_to_dict(url)
    except ProgrammingError:
        return None


def _is_port(text: str) -> bool:
    return not text or (text.isdecimal() and 0 < int(text) < 65536)


def known_options(url: str) -> tuple[str, list[str]]:
    """A URL of PostgreSQL without the options that only other clients know, such as pgbouncer, and their names."""
    from psycopg.pq import Conninfo

    parts = POSTGRES_URL.fullmatch(url)
    login, place, query = parts.groups() if parts else (url, "", "")
    known = {"", "ssl", *(option.keyword.decode() for option in Conninfo.get_defaults())}
    options = [(option.partition("=")[0], option) for option in query.split("&")]
    query = "&".join(option for name, option in options if name in known)
    return f"{login}{place}?{query}".rstrip("?"), [name for name, _ in options if name not in known]


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

    @post_load
    def leave_unknown_options_out(self, settings: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """`UNKNOWN_OPTIONS` has the names of those that DATABASE_URL was given."""
        url = settings["DATABASE_URL"]
        settings["DATABASE_URL"], settings["UNKNOWN_OPTIONS"] = known_options(url) if url else (None, [])
        return settings
