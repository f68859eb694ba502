"""What a process says when it starts: which settings are on, which are dangerous, and whether it can listen."""

import errno
import logging
import os
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from config import LOOPBACK, SETTINGS

logger = logging.getLogger(__name__)


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


def check_free(address: tuple[str, int] | str) -> None:
    """End the process in one line if no server can listen at `address`: host and port, or a Unix socket's path."""
    try:
        if isinstance(address, tuple):
            socket.create_server(address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET).close()
        else:  # whoever binds a path last has it, so ask whether somebody answers
            with socket.socket(socket.AF_UNIX) as client:
                if client.connect_ex(address) == 0:
                    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except OSError as error:
        where = address if isinstance(address, str) else ":".join(map(str, address))
        raise SystemExit(
            f"Cannot listen at {where}: {error.strerror}. Choose another address, or stop the program that uses it."
        ) from None


def announce(config: Mapping[str, Any], **fields: Any) -> None:
    """Log what is on and off, and what is missing."""
    on, off = on_and_off(config)
    logger.info("starting", extra={"fields": {**fields, "on": on, "off": off}})
    for warning in warnings(config):
        logger.warning(warning)
