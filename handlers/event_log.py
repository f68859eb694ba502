"""Every update as one line of the log, for analytics and log drains."""

import logging

from schemas.status_update import StatusUpdate
from schemas.times import isoformat

logger = logging.getLogger(__name__)


def log_event(update: StatusUpdate) -> None:
    fields = {
        "type": update.call.type,
        "timestamp": isoformat(update.timestamp),
        "line": update.phone_number.number,
        "customer": update.customer.number,
        "end_reason": update.end_reason,
    }
    extra = {"call_id": update.call.id, "status": update.call.status, "error": update.error, "fields": fields}
    logger.info("update", extra=extra)
