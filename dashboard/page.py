"""What the page of all calls has."""

import hashlib
from typing import Any
from urllib.parse import urlsplit

from flask import current_app, request

from config import LOOPBACK, WEBHOOK_PATH, dangers, public_url, warnings
from dashboard import listing
from dashboard.figures import PERIODS, figures, first_hour
from dashboard.presenters import delivered, is_public
from stores import Database, calls, get_store, jobs, refusals, spool, updates
from stores.deliveries import AT_ONCE
from stores.records import Backlog
from work.reports import silence

MAX_LISTED = {"active": 300, "stale": 50}  # in /calls.json
MAX_SHOWN = {"active": 5, "stale": 5}  # on the page; the list has all
MAX_TRAIL = 40  # pages that one can go back from an older one
PENDING_TOO_LONG = 60.0  # seconds
LOOK_AGAIN = 10.0  # seconds


def version(db: Database) -> str:
    """Another text as soon as there is a new update, or other work to do, and every ten seconds, as it does not look at
    all that the page has: not at refusals, for one."""
    news = updates.last_id(db), jobs.backlog(db), spool.waiting(db), db.failure, db.now() // LOOK_AGAIN
    return hashlib.sha256(repr(news).encode()).hexdigest()[:16]


def contents() -> dict[str, Any]:
    """The list and, unless the URL asks for a part of it, all that is above.

    `trail`: where the page of the list begins, and before it those that led there.
    """
    db, query, trail = get_store(), listing.query(), request.args.getlist("before")
    days = request.args.get("days", type=int)
    days = days if days in PERIODS else 1
    page, is_part = listing.page(db), bool(trail or query)
    older = listing.before(page)
    parts = {"page": page, "query": query, "wanted": listing.filters(), "part": is_part, "stale_at": stale_at(db)}
    parts |= {"trail": trail, "older": [older, *trail][:MAX_TRAIL] if older else None}
    if not is_part:
        parts |= _now(db) | {"deliveries": delivered(db, days), "figures": figures(db, db.now(), days)}
    if request.endpoint == "dashboard.index":
        parts["choices"] = listing.choices(db)
    return parts


def overview(db: Database, most: dict[str, int]) -> dict[str, Any]:
    """The active and the stale calls, and how many they are."""
    stale = stale_at(db)
    return {
        "counts": {"active": calls.count_active(db, after=stale), "stale": calls.count_active(db, until=stale)},
        "active": calls.active(db, after=stale, limit=most["active"]),
        "stale": calls.active(db, until=stale, limit=most["stale"]),
    }


def stale_at(db: Database) -> float:
    """A call that goes on, and whose start was received then or before, is stale."""
    return db.now() - float(current_app.config["STALE_AFTER"])


def _now(db: Database) -> dict[str, Any]:
    """What is on, what needs attention, and what a receiver without updates has to say."""
    config, now = current_app.config, db.now()
    backlogs, spooled = jobs.backlog(db), spool.waiting(db)
    parts = overview(db, MAX_SHOWN) | {
        "undone": [backlog for backlog in backlogs if _is_late(backlog, now, PENDING_TOO_LONG)],
        "all_delivered": not spooled and not any(_is_late(backlog, now, AT_ONCE) for backlog in backlogs),
        "refusals": refusals.since(db, first_hour(now)),
        "reasons": refusals.REASONS,
        "spooled": (spooled, db.failure),
        "spool_failure": db.spool.failure if db.spool else "",
        "dangers": dangers(config),
        "warnings": warnings(config),
        "signed": bool(config["WEBHOOK_SECRET"]),
        "silent": silence(db),
    }
    return parts | _address()


def _is_late(backlog: Backlog, now: float, seconds: float) -> bool:
    """Whether some of it has failed, or is pending for longer than that."""
    return backlog.failed > 0 or (backlog.oldest or now) < now - seconds


def _address() -> dict[str, Any]:
    """Where this receiver is, whether a provider can reach it there, and the command that sends made-up calls there."""
    url = public_url() or ""
    parts = urlsplit(url)
    command = f".venv/bin/flask simulate --url {url}"
    if parts.hostname in LOOPBACK:
        command = f"make simulate{f' PORT={parts.port}' if parts.port not in (None, 8000) else ''}"
    return {"url": url + WEBHOOK_PATH, "is_public": is_public(url), "simulate": command}
