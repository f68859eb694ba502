"""What is the same everywhere, what the platform says, and which settings must not stay as they are."""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from flask import current_app, has_request_context, request

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
    "STOP": 18.0,  # at a stop, for what is in hand, and for a spool whose disk is thrown away: gunicorn gives 25
    "STALE_AFTER": 12 * 3600.0,
    "CHECK_AFTER": 3600.0,  # how long a call is active before it is checked with the provider
    "CHECK_EVERY": 600.0,
    "UPKEEP_EVERY": 60.0,
}
MAX_BODY = 2 * 1024 * 1024  # bytes
LOOPBACK = ("127.0.0.1", "localhost", "::1")
WEBHOOK_PATH = "/webhooks/status-update"

PLATFORM_HOSTS = ("RENDER_EXTERNAL_HOSTNAME", "RAILWAY_PUBLIC_DOMAIN", "HEROKU_APP_DEFAULT_DOMAIN_NAME")


def platform_url(environ: Mapping[str, str]) -> str | None:
    """Where the platform says that this app is seen; None where it does not say."""
    hosts = [environ[name] for name in PLATFORM_HOSTS if environ.get(name)]
    if app := environ.get("FLY_APP_NAME"):
        hosts.append(f"{app}.fly.dev")
    return f"https://{hosts[0]}" if hosts else None


def has_ephemeral_disk(environ: Mapping[str, str]) -> bool:
    """Whether a restart loses what is on the disk. Each of these platforms names itself so; Heroku has no disk that
    stays, and on the others one can be mounted."""
    others = {"RENDER", "RAILWAY_ENVIRONMENT", "FLY_APP_NAME", "K_SERVICE"}
    return "DYNO" in environ or not (others.isdisjoint(environ) or environ.get("SQLITE_PATH"))


def public_url() -> str | None:
    """Where people see the app, without a slash at the end: as PUBLIC_URL or the platform says, else as the request
    does or, outside of one, as the last did."""
    if has_request_context():
        forwarded = request.headers.get("X-Forwarded-Proto", "")
        scheme = "https" if re.search(r"\bhttps\b", forwarded, re.IGNORECASE) else request.scheme
        current_app.extensions["seen_at"] = f"{scheme}://{request.host}{quote(request.script_root)}"
    url = current_app.config["PUBLIC_URL"] or current_app.extensions.get("seen_at")
    return url.rstrip("/") if url else None


def dangers(config: Mapping[str, Any]) -> Iterator[str]:
    """What must not stay as it is, a sentence each."""
    if config["ALLOW_UNSIGNED"]:
        yield "Anyone can post updates while WEBHOOK_SECRET is unset: unset ALLOW_UNSIGNED."
    if config["WEBHOOK_SECRET"] and not config["WEBHOOK_TOLERANCE"]:
        yield "Updates of any age can be posted again: unset WEBHOOK_TOLERANCE."
    if config["DASHBOARD_PASSWORD"] in config["WEBHOOK_SECRET"]:
        yield "Who sees the calls can post updates: set another DASHBOARD_PASSWORD."
    if config["EPHEMERAL_DISK"] and not config["DATABASE_URL"]:
        yield "This disk does not survive a restart: set DATABASE_URL, or SQLITE_PATH to a file that stays."
    for name, secret in (("CRM_WEBHOOK_URL", "CRM_TOKEN"), ("PROVIDER_API_URL", "PROVIDER_API_KEY")):
        url = urlsplit(config[name] or "")
        if url.scheme == "http" and url.hostname not in LOOPBACK and (config[secret] or "@" in url.netloc):
            yield f"{secret} or a password can be read on its way: let {name} start with https://."


def warnings(config: Mapping[str, Any]) -> Iterator[str]:
    """The same, and what a deployment should not stay without."""
    yield from dangers(config)
    if not config["WEBHOOK_SECRET"] and not config["ALLOW_UNSIGNED"]:
        yield "Only `flask run` takes updates, from this machine: set WEBHOOK_SECRET to the provider's."
    if not config["DASHBOARD_PASSWORD"]:
        yield "Only `flask run` shows calls, to this machine: set DASHBOARD_PASSWORD."
    elif len(config["DASHBOARD_PASSWORD"]) < 12:
        yield "DASHBOARD_PASSWORD can be guessed: set one of 12 characters or more."
    if config["SLACK_WEBHOOK_URL"] and not config["PUBLIC_URL"]:
        yield "Alerts that are sent later have no link to the call: set PUBLIC_URL."
    if unknown := ", ".join(config["UNKNOWN_OPTIONS"]):
        yield f"PostgreSQL knows no such option, so it is not used: take {unknown} out of DATABASE_URL."
