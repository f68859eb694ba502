"""The thread that does what is pending, and keeps a receiver well for months: pruning, and asking after calls that
never ended."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flask import Flask, current_app, g
from marshmallow import ValidationError

from config import clock
from dispatch import dispatch, loaded, retry_one
from handlers import HANDLERS
from handlers.outbound import GiveUp, Retry, Unavailable, get
from schemas.status_update import ENDED, ENDED_WITH_ERROR, StatusUpdate, isoformat, load
from stores import CallState, StoreError, get_store

DAY = 24 * 3600.0
BATCH = 500  # updates pruned at a time
LOOK_UPS = 30  # calls asked after at a time; the provider takes 100 requests a minute
ON = ("ringing", "connecting", "in-progress", "transferred")  # the provider's statuses of a call that goes on
FINISHED = object()

logger = logging.getLogger(__name__)


def start_retrying(app: Flask) -> Callable[[], None]:
    """Start this process's one retry thread, unless it runs already.

    Returns what ends it: that finishes what is in hand, tries due work a last time and logs what stays pending.
    """
    stopping = threading.Event()
    thread = threading.Thread(target=_retry_until, args=(stopping, app), name="retry", daemon=True)

    def stop() -> None:
        stopping.set()
        thread.join()
        with app.app_context():
            _last_try()

    if app.extensions.setdefault("stop_retrying", stop) is stop:
        thread.start()
    return app.extensions["stop_retrying"]


def _retry_until(stopping: threading.Event, app: Flask) -> None:
    every = app.config["RETRY_EVERY"]
    wait, steps, upkeep_at, orphans = every, iter(()), 0.0, set()
    while not stopping.wait(wait):
        with app.app_context():
            try:
                get_store().drain(clock())
                app.extensions["refusals"].flush(clock())
                done = [retry_one(handler, clock()) for handler in HANDLERS if not stopping.is_set()]
                wait = 0 if any(done) else every
                if next(steps, FINISHED) is FINISHED and time.monotonic() >= upkeep_at:
                    steps, upkeep_at = upkeep(orphans), time.monotonic() + app.config["UPKEEP_EVERY"]
            except StoreError as error:
                logger.error("retries wait for the store", extra={"error": str(error)})
                wait = 5 * every
            except Exception:
                logger.exception("retry thread")
                wait = 5 * every


def _last_try() -> None:
    g.deadline = time.monotonic() + current_app.config["LAST_TRY"]
    now = clock()
    try:
        for handler in HANDLERS:
            while time.monotonic() < g.deadline and retry_one(handler, now, probe=True):
                pass
        pending = {each.handler: each.pending for each in get_store().backlog() if each.pending}
        if pending:
            logger.warning("stopped with work pending", extra={"fields": pending})
    except StoreError as error:
        logger.error("stopped without a last try", extra={"error": str(error)})


def upkeep(orphans: set[str]) -> Iterator[None]:
    """Do what is due and no other process has taken on, in steps short enough to come between retries."""
    store, config = get_store(), current_app.config
    put_off_orphans(orphans)
    yield
    if store.claim("prune", clock(), DAY):
        yield from prune()
    if config["PROVIDER_API_KEY"] and store.claim("reconcile", clock(), config["ASK_EVERY"]):
        for call, found in reconcile():
            logger.info("asked after a call", extra={"call_id": call.id, "fields": {"found": found}})
            yield


def put_off_orphans(logged: set[str]) -> None:
    """Fail the work of handlers that there are no more once it is too old; until then one may come back."""
    store, now = get_store(), clock()
    for name in {each.handler for each in store.backlog() if each.pending} - {h.__name__ for h in HANDLERS}:
        if name not in logged:
            logger.error("no such handler any more: its work fails after 24 h", extra={"handler": name})
            logged.add(name)
        while taken := store.take(name, now, now + current_app.config["LEASE"]):
            kept, row = taken
            end = kept.received_at + current_app.config["GIVE_UP_AFTER"]
            put_off = replace(row, due=end if end > now else None, error="no such handler any more")
            store.settle(loaded(kept), row.due, [], [put_off])


def prune() -> Iterator[None]:
    before = clock() - current_app.config["RETENTION_DAYS"] * DAY
    updates = calls = 0
    while any(pruned := get_store().prune(before, BATCH)):
        updates, calls = updates + pruned[0], calls + pruned[1]
        yield
    logger.info("pruned", extra={"fields": {"updates": updates, "calls": calls}})


def reconcile() -> Iterator[tuple[CallState, str]]:
    """Ask the provider after calls that have been active for long, first those not asked after for longest.

    One that is over gets its final update. Yields each call with what was found and done.
    """
    store, now, config = get_store(), clock(), current_app.config
    active = [call for call in store.active() if not call.unknown]
    old = [call for call in active if now - call.start_received_at > config["ASK_AFTER"]]
    for call in sorted(old, key=lambda call: call.asked_at or 0)[:LOOK_UPS]:
        unknown = False
        try:
            found = settle_call(call, ask(call))
        except GiveUp:
            found, unknown = "unknown to the provider", True
        except Retry as error:
            if isinstance(error, Unavailable) and error.after:
                store.claim("reconcile", now + config["ASK_EVERY"], error.after)
            yield call, f"not told by the provider's API: {error}"
            return
        except (ValueError, AttributeError, ValidationError) as error:
            found = f"not told by the provider's API: the answer cannot be read ({error})"
        store.note_asked(call.id, clock(), unknown=unknown)
        yield call, found


def ask(call: CallState) -> dict[str, Any]:
    """The provider's own record of a call. Raises what `get` does."""
    config = current_app.config
    url = f"{config['PROVIDER_API_URL'].rstrip('/')}/calls/{quote(call.id, safe='')}"
    return get(url, {"Authorization": f"Bearer {config['PROVIDER_API_KEY']}"}).json()


def settle_call(call: CallState, answer: dict[str, Any]) -> str:
    """Dispatch the final update that never came, where the provider's `answer` says that the call is over."""
    if answer.get("status") in (None, *ON):
        return "still on"
    latest, _ = get_store().call(call.id)
    if latest is None or latest.end_received_at is not None:
        return "ended meanwhile"
    update = end_of(call, answer)
    dispatch(update)
    return f"{update.call.status} at {isoformat(update.timestamp)}"


def end_of(call: CallState, answer: dict[str, Any]) -> StatusUpdate:
    """The final update of a call that is over, with its true end time and error."""
    now = datetime.fromtimestamp(clock(), UTC)
    failed = answer["status"] != ENDED
    message = {
        "type": "status-update",
        "timestamp": answer.get("ended_at") or isoformat(now),
        "call": {"id": call.id, "type": call.type, "status": ENDED_WITH_ERROR if failed else ENDED},
        "phone_number": {"number": call.line, "name": call.line_name},
        "customer": {"number": call.customer},
        "error": answer.get("error") or answer["status"] if failed else None,
    }
    return load({"message": message}, now)
