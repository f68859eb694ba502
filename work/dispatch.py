"""Keep an update and call its handlers."""

import logging

import stores
from schemas.status_update import StatusUpdate
from work.lanes import get_lanes
from work.settling import settle

logger = logging.getLogger(__name__)


def dispatch(update: StatusUpdate) -> None:
    """Keep `update` and call, in their order, the handlers that are on and want it, unless it is a repeat or spooled.

    What handlers do never reaches the caller; what one has not done stays pending. Raises StoreError where the update
    could not be kept.
    """
    lanes = [lane for lane in get_lanes() if lane.wants(update)]
    result = stores.keep(update, [lane.name for lane in lanes])
    if result.update_id is None:
        logger.info(result.outcome, extra={"call_id": update.call.id, "status": update.call.status})
        return
    for lane in lanes:
        lane.in_hand.add(result.update_id)
    settle([lane.call_in_request(update, result.update_id, result.lease) for lane in lanes])
