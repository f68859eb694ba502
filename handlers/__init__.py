"""What is done with every new update: plain functions `handler(update) -> None`, called in this order.

A handler returns when its work is done. It raises Retry to be called again later, GiveUp when that cannot help;
anything else it raises means Retry too. It can be called again for an update it has already handled, where a process
died in between.
"""

from collections.abc import Callable, Mapping
from typing import Any

from handlers.active_calls import track_call
from handlers.crm import update_crm
from handlers.event_log import log_event
from handlers.slack import alert_on_error
from schemas.status_update import StatusUpdate

Handler = Callable[[StatusUpdate], None]

HANDLERS: tuple[Handler, ...] = (log_event, track_call, alert_on_error, update_crm)

# The setting that a handler cannot do without: while it is unset the handler is off, which leaves its work pending.
NEEDS: dict[Handler, str] = {
    track_call: "REDIS_URL",
    alert_on_error: "SLACK_WEBHOOK_URL",
    update_crm: "CRM_WEBHOOK_URL",
}

# What a handler is about, where that is not every update.
WANTS: dict[Handler, Callable[[StatusUpdate], bool]] = {alert_on_error: lambda update: update.ends_with_error}

# Handlers that ask no service, so that nothing can keep them waiting.
ASKS_NOBODY: tuple[Handler, ...] = (log_event,)


def active_handlers(config: Mapping[str, Any]) -> list[Handler]:
    """The handlers that are on, in their order."""
    return [handler for handler in HANDLERS if handler not in NEEDS or config[NEEDS[handler]]]
