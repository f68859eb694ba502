"""What is done with every new update: plain functions `handler(update) -> None`, called in this order.

A handler returns when its work is done, or when its setting is unset. It raises Retry to be called again later, GiveUp
when that cannot help; anything else it raises means Retry too. It can be called again for an update it has already
handled, where a process died in between.
"""

from collections.abc import Mapping
from typing import Any

from flask import Flask

from handlers import active_calls
from handlers.active_calls import track_call
from handlers.crm import update_crm
from handlers.event_log import log_event
from handlers.slack import alert_on_error

HANDLERS = (log_event, track_call, alert_on_error, update_crm)

# Without its setting a handler has nothing to do, so it gets no jobs. A handler that is not named here always does.
NEEDS = {"track_call": "REDIS_URL", "alert_on_error": "SLACK_WEBHOOK_URL", "update_crm": "CRM_WEBHOOK_URL"}


def init_app(app: Flask) -> None:
    app.extensions |= {"redis": active_calls.connect(app.config), "services": {}}


def is_on(handler: str, config: Mapping[str, Any]) -> bool:
    return handler not in NEEDS or bool(config[NEEDS[handler]])
