"""What the page of all calls has."""

import hashlib
from typing import Any

from flask import current_app, request

from config import WEBHOOK_PATH, dangers, public_url, warnings
from dashboard import listing
from dashboard.figures import PERIODS, figures, first_hour, remembered
from stores import Database, calls, deliveries, get_store, jobs, refusals, spool, updates
from stores.deliveries import AT_ONCE, Deliveries
from stores.records import Backlog
from work.lanes import get_lanes
from work.reports import silence


def version(db: Database) -> str:
    """Another text as soon as there is a new update, or other work to do, and every five seconds, as it does not look
    at all that the page has: not at refusals, for one."""
    news = updates.last_id(db), jobs.backlog(db), spool.waiting(db), db.failure, db.now() // 5
    return hashlib.sha256(repr(news).encode()).hexdigest()[:16]


def contents() -> dict[str, Any]:
    """The list and, unless the URL asks for a part of it, all that is above.

    `trail`: where the page of the list begins, and before it those that led there.
    """
    db, trail = get_store(), request.args.getlist("before")
    query, filters, page = listing.read_url(db)
    is_part = bool(trail or query)
    parts = {
        "page": page,
        "query": query,
        "filters": filters,
        "part": is_part,
        "trail": trail,
        "older": [page.older, *trail][:40] if page.older else None,  # so many pages one can go back
        "stale_at": calls.stale_at(db),
    }
    return parts if is_part else parts | _above(db)


def _above(db: Database) -> dict[str, Any]:
    """What is on, what needs attention, the figures, and what a receiver without updates has to say."""
    now, days = db.now(), request.args.get("days", type=int)
    days = days if days in PERIODS else 1
    backlogs, spooled = jobs.backlog(db), spool.waiting(db)
    rows = remembered(("deliveries", days), 60.0, lambda: deliveries.since(db, first_hour(now, days)))
    return overview(db, most=5) | {
        "undone": [backlog for backlog in backlogs if _is_late(backlog, now - 60)],
        "all_delivered": not spooled and not any(_is_late(backlog, now - AT_ONCE) for backlog in backlogs),
        "refusals": refusals.since(db, first_hour(now)),
        "reasons": refusals.REASONS,
        "spooled": spooled,
        "store": db,
        "silent": silence(db),
        "dangers": [*dangers(current_app.config)],
        "warnings": [*warnings(current_app.config)],
        "deliveries": {lane.name: rows.get(lane.name, Deliveries()) for lane in get_lanes()},
        "figures": figures(db, days),
        "url": public_url(),
        "webhook_path": WEBHOOK_PATH,
    }


def overview(db: Database, most: int) -> dict[str, Any]:
    """The active and the stale calls, at most so many of each, and how many they are."""
    stale = calls.stale_at(db)
    return {
        "counts": {"active": calls.count_active(db, after=stale), "stale": calls.count_active(db, until=stale)},
        "active": calls.active(db, after=stale, limit=most),
        "stale": calls.active(db, until=stale, limit=most),
    }


def _is_late(backlog: Backlog, since: float) -> bool:
    """Whether some of it has failed, or is pending since before then."""
    return backlog.failed > 0 or (backlog.oldest is not None and backlog.oldest < since)
