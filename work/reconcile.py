"""Checks long-running calls with the provider's REST API, `GET /calls/{id}`, and settles those that are over."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from flask import current_app
from marshmallow import ValidationError

from handlers.errors import GiveUp, NotFound, Retry, Unavailable
from handlers.http import get
from schemas.document import STATUS_UPDATE
from schemas.status_update import StatusUpdate, load_update
from schemas.statuses import ENDED, ERRORS, GOES_ON, IN_PROGRESS
from schemas.strict_json import storable
from schemas.times import isoformat
from stores import calls, get_store, locks, updates
from stores.records import CallRecord
from work.dispatch import dispatch

CHECKED_AT_ONCE = 30  # calls; the provider takes 100 requests a minute
NOT_TOLD = "not told by the provider's API"


def reconcile() -> Iterator[tuple[CallRecord, str]]:
    """Check long-running calls with the provider, first those not checked for longest.

    One that is over gets its final update. Yields each call with what became of it.
    """
    store, config = get_store(), current_app.config
    before = store.now() - config["CHECK_AFTER"]
    old = [call for call in calls.active(store) if call.start_received_at < before and not call.unknown]
    for call in sorted(old, key=lambda call: call.checked_at or 0)[:CHECKED_AT_ONCE]:
        unknown = False
        try:
            result = settle_call(call, fetch_call(call))
        except (NotFound, GiveUp):
            result, unknown = "unknown to the provider", True
        except Retry as error:
            if isinstance(error, Unavailable) and error.after:
                locks.renew(store, "reconcile", config["CHECK_EVERY"] + error.after)
            yield call, f"{NOT_TOLD}: {error}"
            return
        except (ValueError, AttributeError, ValidationError) as error:
            result = f"{NOT_TOLD}: the answer cannot be read ({error})"
        calls.note_checked(store, call.id, unknown=unknown)
        yield call, result


def fetch_call(call: CallRecord) -> dict[str, Any]:
    """The provider's own record of a call. Raises what `get` does."""
    config = current_app.config
    url = f"{config['PROVIDER_API_URL'].rstrip('/')}/calls/{quote(call.id, safe='')}"
    answer: dict[str, Any] = json.loads(get(url, {"Authorization": f"Bearer {config['PROVIDER_API_KEY']}"}))
    return answer


def settle_call(call: CallRecord, answer: dict[str, Any]) -> str:
    """Dispatch the final update that never came, where the provider's `answer` says that the call is over."""
    update = end_of(call, answer)
    if not update.is_final:
        return "still on" if update.call.status in (IN_PROGRESS, *GOES_ON) else f"still on: {update.call.status}"
    latest = calls.get(get_store(), call.id)
    if latest is None or latest.end_received_at is not None:
        return "ended meanwhile"
    dispatch(update)
    return f"{update.call.status} at {isoformat(update.timestamp)}"


def end_of(call: CallRecord, answer: dict[str, Any]) -> StatusUpdate:
    """What the provider's `answer` says of a call as an update, with what only the call's start had.

    It is final where the call is over: by its status, or where it has an `ended_at`.
    """
    store, status, error = get_store(), answer.get("status") or IN_PROGRESS, answer.get("error")
    start = next((stored for stored in updates.of_call(store, call.id) if stored.status == IN_PROGRESS), None)
    message = {
        "type": STATUS_UPDATE,
        "timestamp": answer.get("ended_at"),
        "call": {"id": call.id, "type": call.type, "status": status, "ended_at": answer.get("ended_at")},
        "phone_number": {"number": call.line, "name": call.line_name},
        "customer": {"number": call.customer},
        "error": error or (status if status in ERRORS else None),
        "assistant": json.loads(start.message)["message"].get("assistant") if start else None,
    }
    update = load_update(storable({"message": message}), datetime.fromtimestamp(store.now(), UTC))
    over = update.starts and update.call.ended_at  # a status that cannot end it
    return replace(update, call=replace(update.call, status=ENDED)) if over else update
