"""The settings: what each may be, its default, and how all of them are read from the environment.

No message shows anything of a value, which may be secret.
"""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from marshmallow import Schema, ValidationError, fields, validate, validates_schema

from config import INTERNALS, MAX_BODY, has_ephemeral_disk, platform_url, warnings

logger = logging.getLogger(__name__)


def _secrets(text: str) -> tuple[str, ...]:
    secrets = tuple(filter(None, map(str.strip, text.split(","))))
    if not secrets or min(map(len, secrets)) < 8:
        reason = "v1,whsec_... is two, and with the first anybody signs"
        raise ValidationError(f"Must be secrets of 8 characters or more, separated by commas: {reason}.")
    return secrets


def is_url(text: str) -> bool:
    """Whether `text` is a URL of http or https. Unlike marshmallow's it may name a host such as my_crm."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        return valid and not re.search(r"\s", text)
    except ValueError:
        return False


def _require_url(text: str) -> None:
    if not is_url(text):
        raise ValidationError("Must be a URL with a valid host and port that starts with http:// or https://.")


def _require_redis_url(text: str) -> None:
    from redis import ConnectionPool  # only where it is used

    try:
        ConnectionPool.from_url(text).make_connection()  # connects to nothing yet
    except (TypeError, ValueError):
        raise ValidationError("Must be a URL that redis-py takes, as redis://:password@host:6379/0.") from None


def _require_conninfo(url: str) -> None:
    from psycopg import ProgrammingError  # only where it is used
    from psycopg.conninfo import conninfo_to_dict

    try:
        conninfo_to_dict(known_options(url)[0])
    except ProgrammingError:
        example = "postgresql://user:password@host:5432/name?sslmode=require"
        raise ValidationError(f"Must be a URL that PostgreSQL takes, as {example}.") from None


def known_options(url: str) -> tuple[str, list[str]]:
    """A URL of PostgreSQL without the options that only other clients know, such as pgbouncer, and their names."""
    from psycopg.pq import Conninfo

    keywords = {"ssl", *(option.keyword.decode() for option in Conninfo.get_defaults())}
    place, _, query = url.partition("?")
    names = {option: option.partition("=")[0] for option in query.split("&") if option}
    options = "&".join(option for option, name in names.items() if name in keywords)
    return f"{place}?{options}".rstrip("?"), [name for name in names.values() if name not in keywords]


POSTGRES_URL = validate.Regexp(r"postgres(ql)?://", error="Must start with postgres:// (for a file, set SQLITE_PATH).")
ENCODED_LOGIN = validate.Regexp(  # so the only @ is before the host
    r"[^:]*://(([^@/?%\s]|%[0-9a-fA-F]{2})*@)?[^@]*\Z",
    error="Must have its user and password percent-encoded: %40 for @, %2F for /, %3F for ?, %25 for %.",
)
TOKEN = validate.Regexp(r"[!-~]+\Z", error="Must be printable ASCII without spaces, as it is sent in a header.")
HEADER = validate.Regexp(r"[\w!#$%&'*+.^`|~-]+\Z", re.ASCII, error="Must be the name of a header.")


class Settings(Schema):
    WEBHOOK_SECRET = fields.Function(deserialize=_secrets, load_default=())
    ALLOW_UNSIGNED = fields.Boolean(load_default=False)
    WEBHOOK_TOLERANCE = fields.Integer(load_default=300, validate=validate.Range(0, 86400))
    SQLITE_PATH = fields.String(load_default="instance/calls.db")
    DATABASE_URL = fields.String(load_default=None, validate=[POSTGRES_URL, ENCODED_LOGIN, _require_conninfo])
    REDIS_URL = fields.String(load_default=None, validate=_require_redis_url)
    REDIS_TLS_VERIFY = fields.Boolean(load_default=True)
    CRM_WEBHOOK_URL = fields.String(load_default=None, validate=_require_url)
    CRM_TOKEN = fields.String(load_default=None, validate=TOKEN)
    CRM_TOKEN_HEADER = fields.String(load_default="Authorization", validate=HEADER)
    SLACK_WEBHOOK_URL = fields.String(load_default=None, validate=_require_url)
    ALERT_INTERVAL = fields.Integer(load_default=60, validate=validate.Range(0, 86400))
    ALERT_SILENCE = fields.Integer(load_default=None, validate=validate.Range(1, 8760))
    PUBLIC_URL = fields.String(load_default=None, validate=_require_url)
    DASHBOARD_PASSWORD = fields.String(load_default=None)
    PROVIDER_API_KEY = fields.String(load_default=None, validate=TOKEN)
    PROVIDER_API_URL = fields.String(load_default="https://api.hmsovereign.com/api/v1", validate=_require_url)
    RETENTION_DAYS = fields.Integer(load_default=30, validate=validate.Range(2, 3650))

    @validates_schema(skip_on_field_errors=False)
    def refuse_two_logins(self, settings: dict[str, Any], **_: Any) -> None:
        if settings.get("CRM_TOKEN") and "@" in urlsplit(settings.get("CRM_WEBHOOK_URL") or "").netloc:
            raise ValidationError("Must be unset, or the login in CRM_WEBHOOK_URL taken out.", "CRM_TOKEN")


SETTINGS: dict[str, Any] = {name: field.load_default for name, field in Settings().fields.items()}  # their defaults


def load_config(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The app's configuration from `environ`. Empty values count as unset; nonsense ends the process, a line each."""
    texts = {name: text for name in SETTINGS if (text := environ.get(name, "").strip())}
    try:
        settings = Settings().load(texts)
    except ValidationError as error:
        raise SystemExit("\n".join(f"{name}: {errors[0]}" for name, errors in error.messages_dict.items())) from None
    settings["UNKNOWN_OPTIONS"] = []
    if settings["DATABASE_URL"]:
        settings["DATABASE_URL"], settings["UNKNOWN_OPTIONS"] = known_options(settings["DATABASE_URL"])
    settings["PUBLIC_URL"] = settings["PUBLIC_URL"] or platform_url(environ)
    settings["EPHEMERAL_DISK"] = has_ephemeral_disk(environ)
    return {**INTERNALS, **settings, "MAX_CONTENT_LENGTH": MAX_BODY + 1, "CLOCK": None}


def on_and_off(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the optional settings that are set (`on`), and of those that are not (`off`)."""
    optional = [name for name, default in SETTINGS.items() if not default]
    return {"on": [name for name in optional if config[name]], "off": [name for name in optional if not config[name]]}


def announce(config: Mapping[str, Any]) -> None:
    """Log what is on and off, and what is missing."""
    logger.info("starting", extra={"fields": on_and_off(config)})
    for warning in warnings(config):
        logger.warning(warning)
