"""The set `active_calls` on Redis or Valkey, for a dashboard of the user's own: the ids of the calls that are on."""

from typing import Any

from flask import Flask, current_app

from handlers.errors import Unavailable
from schemas.status_update import StatusUpdate
from stores import calls, get_store

SET = "active_calls"
TIMEOUT = 1.0  # seconds to connect, and to wait for an answer
CHECK = "check REDIS_URL: its password, and rediss:// where the server speaks TLS; and REDIS_TLS_VERIFY"


def init_app(app: Flask) -> None:
    """Keep a client of the server that REDIS_URL names; it connects when it is used."""
    config = app.config
    if not config["REDIS_URL"]:
        return
    from redis import Redis  # only where it is used

    options: dict[str, Any] = {"socket_connect_timeout": TIMEOUT, "socket_timeout": TIMEOUT, "decode_responses": True}
    if config["REDIS_URL"].startswith("rediss:") and not config["REDIS_TLS_VERIFY"]:
        options |= {"ssl_cert_reqs": "none", "ssl_check_hostname": False}
    app.extensions["redis"] = Redis.from_url(config["REDIS_URL"], retry=None, **options)  # the worker tries again


def track_call(update: StatusUpdate) -> None:
    """Put the call into the set or take it out, as the store has it, whatever the order of updates."""
    redis, store, call_id = current_app.extensions["redis"], get_store(), update.call.id
    while True:
        active = calls.is_active(store, call_id, calls.stale_at(store))
        ask(redis.sadd if active else redis.srem, SET, call_id)
        if calls.is_active(store, call_id, calls.stale_at(store)) == active:  # else another update came in between
            return


def mirror_active_calls() -> None:
    """Make the set what the store has: the server may have been away or emptied, and calls end without an update.

    Raises Unavailable where the server is away.
    """
    redis, store = current_app.extensions["redis"], get_store()
    members = ask(redis.smembers, SET)
    active = {call.id for call in calls.active(store, after=calls.stale_at(store))}
    for change, ids in ((redis.srem, members - active), (redis.sadd, active - members)):
        if ids:
            ask(change, SET, *ids)


def ask(command: Any, *arguments: str) -> Any:
    """What Redis answers to a command. Raises Unavailable where it does not take it."""
    from redis.exceptions import RedisError

    try:
        return command(*arguments)
    except RedisError as error:
        raise Unavailable(f"Redis: {error} ({CHECK})") from None
