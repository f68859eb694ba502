"""Settings: read from the environment once, and checked; and which of them must not stay as they are."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from flask import current_app, has_request_context, request

# Not settings, but keys of the app's config, so that tests can change them. Times are in seconds.
INTERNALS = {
    "DEADLINE": 4.0,  # of a request, from its start
    "OUTBOUND_TIMEOUT": 3.0,  # of a request to a service
    "OUTBOUND_SLOTS": 16,  # requests of a worker that wait for one service at a time, a quarter of its threads
    "RETRIES_AT_ONCE": 8,  # of one handler, in a process
    "LEASE": 60.0,
    "RETRY_EVERY": 1.0,  # how often the retry thread looks for due work
    "RETRY_FIRST": 30.0,
    "RETRY_LONGEST": 3600.0,
    "GIVE_UP_AFTER": 24 * 3600.0,
    "PAUSE_AFTER": 3,  # failures in a row
    "PROBE_EVERY": 30.0,  # what a paused handler's service is asked
    "LAST_TRY": 10.0,  # at shutdown
    "STALE_AFTER": 12 * 3600.0,
    "CHECK_AFTER": 3600.0,  # how long a call is active before it is checked with the provider
    "CHECK_EVERY": 600.0,
    "UPKEEP_EVERY": 60.0,
}
VERSION = "1.0"
MAX_BODY = 2 * 1024 * 1024  # bytes
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WEBHOOK_PATH = "/webhooks/status-update"

logger = logging.getLogger(__name__)


def _secrets(text: str) -> tuple[str, ...]:
    secrets = tuple(filter(None, map(str.strip, text.split(","))))
    if not secrets:
        raise ValueError("must be one secret or more, separated by commas")
    return secrets


def _flag(text: str) -> bool:
    if text.lower() in ("1", "true", "yes", "on"):
        return True
    if text.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


def _number(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return parse


def _url(*schemes: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            valid = parts.scheme in schemes and (parts.hostname or parts.scheme == "unix") and parts.port != 0
        except ValueError:
            valid = False
        if not valid or re.search(r"[\s\x00-\x1f]", text):
            starts = " or ".join(f"{scheme}://" for scheme in schemes)
            raise ValueError(f"must be a URL with a valid host and port that starts with {starts}")
        return text

    return parse


def _redis_url(text: str) -> str:
    _url("redis", "rediss", "unix")(text)
    from redis import ConnectionPool  # only where it is used

    try:
        pool = ConnectionPool.from_url(text)
        pool.connection_class(**pool.connection_kwargs)  # connects to nothing yet
    except (TypeError, ValueError):
        raise ValueError("must be a URL whose options redis-py knows") from None
    return text


def _database_url(text: str) -> str:
    if not text.startswith(("postgres://", "postgresql://")):
        raise ValueError("must start with postgres:// or postgresql:// (for a file, set SQLITE_PATH)")
    from psycopg import ProgrammingError  # only where it is used
    from psycopg.conninfo import conninfo_to_dict

    try:
        ports = str(conninfo_to_dict(text).get("port", "")).split(",")  # one a host
        valid = all(0 < int(port) < 65536 for port in filter(None, ports))
    except (ProgrammingError, ValueError):
        valid = False
    if not valid:
        raise ValueError("must be a URL of PostgreSQL, as postgresql://user:password@host:5432/name")
    return text


def _token(text: str) -> str:
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError("must be printable ASCII without spaces, as it is sent in a header")
    return text


SETTINGS: dict[str, tuple[Callable[[str], Any], Any]] = {
    "WEBHOOK_SECRET": (_secrets, ()),
    "ALLOW_UNSIGNED": (_flag, False),
    "WEBHOOK_TOLERANCE": (_number(0, 86400), 300),
    "SQLITE_PATH": (str, "instance/calls.db"),
    "DATABASE_URL": (_database_url, None),
    "REDIS_URL": (_redis_url, None),
    "REDIS_TLS_VERIFY": (_flag, True),
    "CRM_WEBHOOK_URL": (_url("http", "https"), None),
    "CRM_TOKEN": (_token, None),
    "SLACK_WEBHOOK_URL": (_url("http", "https"), None),
    "ALERT_INTERVAL": (_number(0, 86400), 60),
    "DASHBOARD_PASSWORD": (str, None),
    "PROVIDER_API_KEY": (_token, None),
    "PROVIDER_API_URL": (_url("http", "https"), "https://api.hmsovereign.com/api/v1"),
    "RETENTION_DAYS": (_number(2, 3650), 30),
}


def load_config(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The app's configuration from `environ`. An empty value counts as unset; nonsense ends the process in one line."""
    config = {"MAX_CONTENT_LENGTH": MAX_BODY, "CLOCK": None, **INTERNALS}
    for name, (parse, default) in SETTINGS.items():
        text = environ.get(name, "").strip()
        try:
            config[name] = parse(text) if text else default
        except ValueError as error:
            raise SystemExit(f"{name} {error}. Set it to such a value, or unset it.") from None
    config["PUBLIC_URL"] = _public_url(environ)
    # Each of these platforms names itself so. The first has no disk that stays; on the others one can be mounted.
    others = {"RENDER", "RAILWAY_ENVIRONMENT", "FLY_APP_NAME", "K_SERVICE"}
    config["EPHEMERAL_DISK"] = "DYNO" in environ or not (others.isdisjoint(environ) or environ.get("SQLITE_PATH"))
    if config["EPHEMERAL_DISK"] and config["REDIS_URL"] and not config["DATABASE_URL"]:
        raise SystemExit("REDIS_URL keeps no updates any more, and this platform's disk is lost: set DATABASE_URL.")
    return config


def _public_url(environ: Mapping[str, str]) -> str | None:
    """Where the platform says that this app is seen: Render, then Railway, Heroku and Fly."""
    if url := environ.get("RENDER_EXTERNAL_URL"):
        return url
    names = ("RAILWAY_PUBLIC_DOMAIN", "HEROKU_APP_DEFAULT_DOMAIN_NAME")
    fly = environ.get("FLY_APP_NAME")
    host = next(filter(None, map(environ.get, names)), None) or (fly and f"{fly}.fly.dev")
    return f"https://{host}" if host else None


def public_url() -> str | None:
    """Where people see the app: as the platform says, else as the provider's request names it."""
    if current_app.config["PUBLIC_URL"] or not has_request_context():
        return current_app.config["PUBLIC_URL"]
    scheme = request.headers.get("X-Forwarded-Proto", request.scheme)
    return f"{'https' if scheme == 'https' else 'http'}://{request.host}"


def on_and_off(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The names of the optional settings that are set, and of those that are not."""
    optional = [name for name, (_, default) in SETTINGS.items() if not default]
    return [name for name in optional if config[name]], [name for name in optional if not config[name]]


def dangers(config: Mapping[str, Any]) -> list[str]:
    """What must not stay as it is, a sentence each."""
    disk = "This platform's disk does not survive a restart: set DATABASE_URL, or SQLITE_PATH to a file that stays."
    secrets, open_to_all = config["WEBHOOK_SECRET"], config["ALLOW_UNSIGNED"]
    found = {
        "Anyone can post updates: set WEBHOOK_SECRET and unset ALLOW_UNSIGNED.": open_to_all and not secrets,
        "Without WEBHOOK_SECRET anyone could post updates: unset ALLOW_UNSIGNED.": open_to_all and secrets,
        "An update of any age can be posted again: unset WEBHOOK_TOLERANCE.": secrets
        and not config["WEBHOOK_TOLERANCE"],
        "Who sees the calls can post updates: set another DASHBOARD_PASSWORD.": config["DASHBOARD_PASSWORD"] in secrets,
        disk: config["EPHEMERAL_DISK"] and not config["DATABASE_URL"],
    }
    for key, url in (("CRM_TOKEN", "CRM_WEBHOOK_URL"), ("PROVIDER_API_KEY", "PROVIDER_API_URL")):
        parts = urlsplit(config[url] or "")
        clear = parts.scheme == "http" and parts.hostname not in LOOPBACK
        found[f"{key} can be read on its way: set {url} to one that starts with https://."] = config[key] and clear
    return [sentence for sentence, true in found.items() if true]


def warnings(config: Mapping[str, Any]) -> list[str]:
    """The same, and what a deployment should not stay without."""
    found = dangers(config)
    if not config["WEBHOOK_SECRET"] and not config["ALLOW_UNSIGNED"]:
        found.append(
            "Only `flask run` takes updates, from this machine: set WEBHOOK_SECRET to the provider's webhook_secret."
        )
    if not config["DASHBOARD_PASSWORD"]:
        found.append(
            "Only `flask run` shows calls, to this machine: set DASHBOARD_PASSWORD to see them from elsewhere."
        )
    return found


def announce(config: Mapping[str, Any], **fields: Any) -> None:
    """Log what is on and off, and what is missing."""
    on, off = on_and_off(config)
    logger.info("starting", extra={"fields": {**fields, "on": on, "off": off}})
    for warning in warnings(config):
        logger.warning(warning)
