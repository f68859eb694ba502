"""Settings: read from the environment once, and checked; and which of them must not stay as they are."""

import logging
import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from flask import current_app, has_request_context, request

from schemas.settings import Settings

# Not settings, but keys of the app's config, so that tests can change them. Times are in seconds.
INTERNALS = {
    "REQUEST_PATIENCE": (2.0, 2.0),  # for a service to connect and to answer, while our own sender waits
    "WORKER_PATIENCE": (5.0, 30.0),
    "LEASE": 30.0,  # of what a request has in hand
    "WORKER_LEASE": 120.0,
    "RETRY_EVERY": 1.0,  # how often a worker looks for due work
    "RETRY_FIRST": 30.0,
    "RETRY_LONGEST": 3600.0,
    "GIVE_UP_AFTER": 24 * 3600.0,
    "SLOW_AFTER": 1.0,  # a service that took longer is left to the worker
    "AWAY_AFTER": 3,  # failures in a row
    "ASK_EVERY": 30.0,  # seconds between two requests to a service that is away
    "STOP_WORK": 12.0,  # at a stop, for what is in hand
    "STOP_WRITES": 5.0,  # and then for what is still to be written
    "STOP": 22.0,  # in all, where the spool must be drained: gunicorn gives 25
    "STALE_AFTER": 12 * 3600.0,
    "CHECK_AFTER": 3600.0,  # how long a call is active before it is checked with the provider
    "CHECK_EVERY": 600.0,
    "UPKEEP_EVERY": 60.0,
}
VERSION = "1.0"
MAX_BODY = 2 * 1024 * 1024  # bytes
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WEBHOOK_PATH = "/webhooks/status-update"
SHORTEST_PASSWORD = 12  # characters; guesses are not slowed down

logger = logging.getLogger(__name__)


SETTINGS: dict[str, Any] = {name: field.load_default for name, field in Settings().fields.items()}  # their defaults


def load_config(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The app's configuration from `environ`. Empty values count as unset; nonsense ends the process, a line each."""
    texts = {name: text for name in SETTINGS if (text := environ.get(name, "").strip())}
    # Each of these platforms names itself so. The first has no disk that stays; on the others one can be mounted.
    others = {"RENDER", "RAILWAY_ENVIRONMENT", "FLY_APP_NAME", "K_SERVICE"}
    ephemeral = "DYNO" in environ or not (others.isdisjoint(environ) or environ.get("SQLITE_PATH"))
    if lines := _errors(texts, ephemeral):
        raise SystemExit("\n".join(lines))
    config: dict[str, Any] = {"MAX_CONTENT_LENGTH": MAX_BODY, "CLOCK": None, "EPHEMERAL_DISK": ephemeral, **INTERNALS}
    config |= Settings().load(texts)
    config["PUBLIC_URL"] = config["PUBLIC_URL"] or _platform_url(environ)
    return config


def _errors(texts: Mapping[str, str], ephemeral: bool) -> list[str]:
    """What makes no sense, a line each."""
    errors = Settings().validate(texts)
    lines = [f"{name} {messages[0]}. Set it to such a value, or unset it." for name, messages in errors.items()]
    if "CRM_TOKEN" in texts and _has_login(texts.get("CRM_WEBHOOK_URL", "")):
        lines.append("CRM_TOKEN and the login in CRM_WEBHOOK_URL exclude each other: unset CRM_TOKEN, or take it out.")
    if ephemeral and "REDIS_URL" in texts and "DATABASE_URL" not in texts:
        lines.append("REDIS_URL keeps no updates any more, and this platform's disk is lost: set DATABASE_URL.")
    return lines


def _has_login(url: str) -> bool:
    return re.match("[^/]*//[^/?#]*@", url) is not None


def _platform_url(environ: Mapping[str, str]) -> str | None:
    """Where the platform says that this app is seen: Render, then Railway, Heroku and Fly."""
    if url := environ.get("RENDER_EXTERNAL_URL"):
        return url
    names = ("RAILWAY_PUBLIC_DOMAIN", "HEROKU_APP_DEFAULT_DOMAIN_NAME")
    fly = environ.get("FLY_APP_NAME")
    host = next(filter(None, map(environ.get, names)), None) or (fly and f"{fly}.fly.dev")
    return f"https://{host}" if host else None


def public_url() -> str | None:
    """Where people see the app, without a slash at the end: as PUBLIC_URL or the platform says, else as the request
    does or, outside of one, as the last did."""
    url: str | None = current_app.config["PUBLIC_URL"]
    if url:
        return url.rstrip("/")
    if not has_request_context():
        return current_app.extensions.get("seen_at")
    forwarded = re.split(r"[\s,]+", ",".join(request.headers.getlist("X-Forwarded-Proto")).lower())
    scheme = "https" if "https" in forwarded else request.scheme
    url = current_app.extensions["seen_at"] = f"{scheme}://{request.host}{quote(request.script_root)}"
    return url


def on_and_off(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The names of the optional settings that are set, and of those that are not."""
    optional = [name for name, default in SETTINGS.items() if not default]
    return [name for name in optional if config[name]], [name for name in optional if not config[name]]


def dangers(config: Mapping[str, Any]) -> list[str]:
    """What must not stay as it is, a sentence each."""
    secrets, open_to_all = config["WEBHOOK_SECRET"], config["ALLOW_UNSIGNED"]
    sentences = []
    if open_to_all and not secrets:
        sentences.append("Anyone can post updates: set WEBHOOK_SECRET and unset ALLOW_UNSIGNED.")
    if open_to_all and secrets:
        sentences.append("Without WEBHOOK_SECRET anyone could post updates: unset ALLOW_UNSIGNED.")
    if secrets and not config["WEBHOOK_TOLERANCE"]:
        sentences.append("An update of any age can be posted again: unset WEBHOOK_TOLERANCE.")
    if config["DASHBOARD_PASSWORD"] in secrets:
        sentences.append("Who sees the calls can post updates: set another DASHBOARD_PASSWORD.")
    if config["EPHEMERAL_DISK"] and not config["DATABASE_URL"]:
        stays = "set DATABASE_URL, or SQLITE_PATH to a file that stays"
        sentences.append(f"This platform's disk does not survive a restart: {stays}.")
    return sentences + _secrets_in_clear(config)


def _secrets_in_clear(config: Mapping[str, Any]) -> list[str]:
    sentences = []
    for name, url in (("CRM_TOKEN", "CRM_WEBHOOK_URL"), ("PROVIDER_API_KEY", "PROVIDER_API_URL")):
        text = config[url] or ""
        parts = urlsplit(text)
        secret = name if config[name] else f"The password in {url}" if _has_login(text) else None
        if secret and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            sentences.append(f"{secret} can be read on its way: set {url} to one that starts with https://.")
    return sentences


def warnings(config: Mapping[str, Any]) -> list[str]:
    """The same, and what a deployment should not stay without."""
    sentences, password = dangers(config), config["DASHBOARD_PASSWORD"]
    if not config["WEBHOOK_SECRET"] and not config["ALLOW_UNSIGNED"]:
        needed = "set WEBHOOK_SECRET to the provider's webhook_secret"
        sentences.append(f"Only `flask run` takes updates, from this machine: {needed}.")
    if not password:
        needed = "set DASHBOARD_PASSWORD to see them from elsewhere"
        sentences.append(f"Only `flask run` shows calls, to this machine: {needed}.")
    elif len(password) < SHORTEST_PASSWORD:
        needed = f"set DASHBOARD_PASSWORD to {SHORTEST_PASSWORD} characters or more"
        sentences.append(f"The dashboard's password can be guessed: {needed}.")
    if config["SLACK_WEBHOOK_URL"] and not config["PUBLIC_URL"]:
        needed = "set PUBLIC_URL to where people see this app"
        sentences.append(f"What Slack is told later has no link to the call: {needed}.")
    for option in config["UNKNOWN_OPTIONS"]:
        sentences.append(f"PostgreSQL knows no option {option}, so it is not used: take it out of DATABASE_URL.")
    return sentences


def announce(config: Mapping[str, Any], **fields: Any) -> None:
    """Log what is on and off, and what is missing."""
    on, off = on_and_off(config)
    logger.info("starting", extra={"fields": {**fields, "on": on, "off": off}})
    for warning in warnings(config):
        logger.warning(warning)
