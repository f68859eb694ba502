"""The set `active_calls` on Redis or Valkey, for a dashboard of the user's own: the ids of the calls that are on."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flask import current_app

from handlers.errors import Retry, Unavailable
from schemas.status_update import StatusUpdate
from stores import calls, get_store

SET = "active_calls"
TIMEOUT = 1.0  # seconds to connect, and to wait for an answer
CHECK = "check REDIS_URL: its password, and rediss:// where the server speaks TLS; and REDIS_TLS_VERIFY"


def connect(config: Mapping[str, Any]) -> Any:
    """A client of the server that the settings name, None where they name none. Connects when it is used."""
    if not config["REDIS_URL"]:
        return None
    from redis import Redis  # only where it is used
    from redis.backoff import NoBackoff
    from redis.retry import Retry as Retries

    unverified = config["REDIS_URL"].startswith("rediss:") and not config["REDIS_TLS_VERIFY"]
    return Redis.from_url(
        config["REDIS_URL"],
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        retry=Retries(NoBackoff(), 0),  # a job that fails is retried, and nobody waits for that here
        decode_responses=True,
        **({"ssl_cert_reqs": "none", "ssl_check_hostname": False} if unverified else {}),
    )


def track_call(update: StatusUpdate) -> None:
    """Put the call into the set or take it out, as the store has it, whatever the order of updates."""
    redis = current_app.extensions["redis"]
    is_active = partial(calls.is_active, get_store(), update.call.id, _stale_before())
    active = is_active()
    while True:
        _ask(redis.sadd if active else redis.srem, SET, update.call.id)
        written, active = active, is_active()
        if written == active:  # else another update of the call came in between
            return


def mirror_active_calls() -> None:
    """Make the set what the store has: the server may have been away or emptied, and calls end without an update.

    Raises Unavailable where the server is away.
    """
    redis = current_app.extensions["redis"]
    members = _ask(redis.smembers, SET)
    active = {call.id for call in calls.active(get_store(), after=_stale_before())}
    for change, ids in ((redis.srem, members - active), (redis.sadd, active - members)):
        if ids:
            _ask(change, SET, *ids)


def _stale_before() -> float:
    return get_store().now() - float(current_app.config["STALE_AFTER"])


def _ask(command: Any, *arguments: str) -> Any:
    from redis.exceptions import ConnectionError, RedisError, TimeoutError

    try:
        return command(*arguments)
    except (ConnectionError, TimeoutError) as error:
        raise Unavailable(f"Redis: {error} ({CHECK})") from None
    except RedisError as error:
        raise Retry(f"Redis: {error}") from None
