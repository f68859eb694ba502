"""What keeps a receiver well for months: pruning, bounds on leases, checking long-running calls with the provider."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flask import current_app, g
from marshmallow import ValidationError

from dispatch import dispatch
from handlers import HANDLERS
from handlers.active_calls import mirror_active_calls
from handlers.outbound import PROVIDER, Attempt, GiveUp, Retry, Unavailable, get
from schemas.status_update import ENDED, ENDED_WITH_ERROR, StatusUpdate, isoformat, load
from stores import calls, get_store, jobs, locks, retention, updates
from stores.records import Call, Settlement

DAY = 24 * 3600.0
BATCH = 500  # updates pruned at a time
LOOK_UPS = 30  # calls checked at a time; the provider takes 100 requests a minute
ON = ("ringing", "connecting", "in-progress", "transferred")  # the provider's statuses of a call that goes on

logger = logging.getLogger(__name__)


def upkeep(unknown_handlers: set[str]) -> Iterator[None]:
    """Do what is due and no other process has taken on, in steps short enough to come between retries."""
    store, config = get_store(), current_app.config
    jobs.bound(store, config["LEASE"], 1.5 * config["RETRY_LONGEST"])
    put_off_unknown(unknown_handlers)
    yield
    if config["REDIS_URL"] and not locks.acquire(store, "mirror", config["UPKEEP_EVERY"] - 1):
        try:
            mirror_active_calls()
        except Retry as error:
            logger.warning("active_calls not mirrored", extra={"error": str(error)})
    yield
    if is_time_to_prune():
        yield from prune()
    if config["PROVIDER_API_KEY"] and not locks.acquire(store, "reconcile", config["ASK_EVERY"]):
        for call, found in reconcile():
            logger.info("checked a call with the provider", extra={"call_id": call.id, "fields": {"found": found}})
            yield


def put_off_unknown(logged: set[str]) -> None:
    """Fail the jobs of handlers that no longer exist once they are too old; until then one may come back."""
    store, config = get_store(), current_app.config
    now = store.now()
    known = {handler.__name__ for handler in HANDLERS}
    for name in {each.handler for each in jobs.backlog(store) if each.pending} - known:
        if name not in logged:
            logger.error("no such handler any more: its work fails after 24 h", extra={"handler": name})
            logged.add(name)
        while leased := jobs.lease_next(store, name, now, now + config["LEASE"]):
            stored, job = leased
            end = stored.received_at + config["GIVE_UP_AFTER"]
            put_off = replace(job, state="pending", due_at=min(end, now + config["RETRY_LONGEST"]))
            failed = replace(job, state="failed", due_at=None)
            job = replace(put_off if end > now else failed, error="no such handler any more")
            jobs.settle(store, Settlement(stored.id, now + config["LEASE"], [job]))


def is_time_to_prune() -> bool:
    """Whether a day has passed since the last time, and no more than three: else the clock may have jumped, and what it
    would remove waits for another day."""
    store = get_store()
    ended_at = locks.ends_at(store, "prune")
    if locks.acquire(store, "prune", DAY):
        return False
    late = None if ended_at is None else store.now() - ended_at
    if late is not None and not 0 <= late <= 2 * DAY:
        logger.warning("nothing is pruned today: the clock jumped, or the receiver was off")
    return late is not None and 0 <= late <= 2 * DAY


def prune() -> Iterator[None]:
    store = get_store()
    before = min(store.now(), updates.latest(store) or 0) - current_app.config["RETENTION_DAYS"] * DAY
    removed = [0, 0]
    while any(pruned := retention.prune(store, before, BATCH)):
        removed = [sum(each) for each in zip(removed, pruned, strict=True)]
        yield
    logger.info("pruned", extra={"fields": dict(zip(("updates", "calls"), removed, strict=True))})


def reconcile() -> Iterator[tuple[Call, str]]:
    """Check long-running calls with the provider, first those not checked for longest.

    One that is over gets its final update. Yields each call with what was found and done.
    """
    store, config = get_store(), current_app.config
    before = store.now() - config["ASK_AFTER"]
    old = [call for call in calls.active(store) if call.start_received_at < before and not call.unknown]
    for call in sorted(old, key=lambda call: call.checked_at or 0)[:LOOK_UPS]:
        unknown = False
        try:
            found = settle_call(call, ask(call))
        except GiveUp:
            found, unknown = "unknown to the provider", True
        except Retry as error:
            if isinstance(error, Unavailable) and error.after:
                locks.hold(store, "reconcile", config["ASK_EVERY"] + error.after)
            yield call, f"not told by the provider's API: {error}"
            return
        except (ValueError, AttributeError, ValidationError) as error:
            found = f"not told by the provider's API: the answer cannot be read ({error})"
        calls.note_checked(store, call.id, unknown=unknown)
        yield call, found


def ask(call: Call) -> dict[str, Any]:
    """The provider's own record of a call. Raises what `get` does."""
    config = current_app.config
    g.attempt = Attempt(PROVIDER)  # not that of an update that was dispatched before
    url = f"{config['PROVIDER_API_URL'].rstrip('/')}/calls/{quote(call.id, safe='')}"
    return get(url, {"Authorization": f"Bearer {config['PROVIDER_API_KEY']}"}).json()


def settle_call(call: Call, answer: dict[str, Any]) -> str:
    """Dispatch the final update that never came, where the provider's `answer` says that the call is over."""
    if answer.get("status") in (None, *ON):
        return "still on"
    latest = calls.get(get_store(), call.id)
    if latest is None or latest.end_received_at is not None:
        return "ended meanwhile"
    update = end_of(call, answer)
    dispatch(update)
    return f"{update.call.status} at {isoformat(update.timestamp)}"


def end_of(call: Call, answer: dict[str, Any]) -> StatusUpdate:
    """The final update of a call that is over, with its true end time and error."""
    now = datetime.fromtimestamp(get_store().now(), UTC)
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
