"""Checks long-running calls with the provider's REST API, `GET /calls/{id}`, and ends those that are over."""

from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote

from flask import current_app
from marshmallow import ValidationError

from handlers.errors import GiveUp, NotFound, Retry
from handlers.http import get
from schemas.document import STATUS_UPDATE
from schemas.status_update import StatusUpdate, load_update
from schemas.statuses import ENDED, ERRORS, IN_PROGRESS
from schemas.strict_json import parse_json
from schemas.times import isoformat
from stores import calls, get_store, updates
from stores.records import CallRecord
from work.dispatch import dispatch

CHECKED_AT_ONCE = 30  # calls; the provider takes 100 requests a minute
NOT_TOLD = "not told by the provider's API"
UNKNOWN = "unknown to the provider"


def reconcile() -> Iterator[tuple[CallRecord, str]]:
    """Check long-running calls with the provider, first those not checked for longest, until it does not answer.

    One that is over gets its final update. Yields each call with what became of it.
    """
    store = get_store()
    before = store.now() - current_app.config["CHECK_AFTER"]
    old = [call for call in calls.active(store) if call.start_received_at < before and not call.unknown]
    for call in sorted(old, key=lambda call: call.checked_at or 0)[:CHECKED_AT_ONCE]:
        try:
            result = _end(provider_update(call))
        except (NotFound, GiveUp):
            result = UNKNOWN
        except Retry as error:
            yield call, f"{NOT_TOLD}: {error}"
            return
        except (ValueError, AttributeError, ValidationError) as error:
            result = f"{NOT_TOLD}: the answer cannot be read ({error})"
        calls.note_checked(store, call.id, unknown=result == UNKNOWN)
        yield call, result


def provider_update(call: CallRecord) -> StatusUpdate:
    """What the provider's own record of a call says as an update, with what only the call's start had. It is final
    where the call is over: by its status, or where it has an `ended_at`. Raises what `get` does."""
    store, config = get_store(), current_app.config
    url = f"{config['PROVIDER_API_URL'].rstrip('/')}/calls/{quote(call.id, safe='')}"
    answer = parse_json(get(url, {"Authorization": f"Bearer {config['PROVIDER_API_KEY']}"}).encode())
    status, ended_at = answer.get("status") or IN_PROGRESS, answer.get("ended_at")
    if status == IN_PROGRESS and ended_at:
        status = ENDED
    start = next((stored for stored in updates.of_call(store, call.id) if stored.status == IN_PROGRESS), None)
    message = {
        "type": STATUS_UPDATE,
        "timestamp": ended_at,
        "call": {"id": call.id, "type": call.type, "status": status, "ended_at": ended_at},
        "phone_number": {"number": call.line, "name": call.line_name},
        "customer": {"number": call.customer},
        "error": answer.get("error") or (status if status in ERRORS else None),
        "assistant": {"metadata": start.load().metadata if start else None},
    }
    return load_update({"message": message}, datetime.fromtimestamp(store.now(), UTC))


def _end(update: StatusUpdate) -> str:
    """Dispatch the final update of a call that is over. Returns what became of the call."""
    if not update.is_final:
        return f"still on: {update.call.status}"
    if not calls.is_active(get_store(), update.call.id):
        return "ended meanwhile"
    dispatch(update)
    return f"{update.call.status} at {isoformat(update.timestamp)}"
