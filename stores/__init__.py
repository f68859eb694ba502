"""The store: what is kept of calls, and what is still to be done. One contract, an engine a module.

Times are Unix seconds. A handler's *row* exists while that handler has not done its work on an update: *pending* while
the row has a due time, *failed* once it has none. Every verb raises StoreError when the engine cannot do it.
"""

from collections.abc import Iterable, Iterator
from math import inf
from typing import Any, Protocol

from flask import current_app

from schemas.status_update import StatusUpdate
from stores.records import Backlog, CallState, Figures, Kept, Refused, Report, Row, StoreError

__all__ = [
    "Store",
    "create",
    "get_store",
    "Backlog",
    "CallState",
    "Figures",
    "Kept",
    "Refused",
    "Report",
    "Row",
    "StoreError",
]


class Store(Protocol):
    name: str
    durability: str  # what an acknowledged update survives, in a few words

    def record(
        self,
        update: StatusUpdate,
        pending: Iterable[str],
        due: float,
        *,
        now: float,
        leased: bool = True,
        failed: Iterable[str] = (),
    ) -> bool | None:
        """Atomically keep `update` with a row for each handler, and `track` it; False, and nothing done, where its
        (call.id, call.status) is kept already. A `leased` row is being worked on until `due`. None where the update
        waits in the spool: its rows become due once it is drained."""

    def settle(self, update: StatusUpdate, lease: float, done: Iterable[str], failures: Iterable[Row]) -> None:
        """Atomically remove the rows of `done`, and write each of `failures` whose due time still is `lease`."""

    def take(self, handler: str, now: float, lease: float) -> tuple[Kept, Row] | None:
        """Atomically take the row of `handler` that has been due longest at `now`, and lease it until `lease`."""

    def hurry(self, now: float, *, failed: bool = False, call_id: str | None = None, handler: str | None = None) -> int:
        """Atomically make due at `now` what is pending and not leased, and with `failed` also what has failed, as if
        never tried: of one call or handler where given. Returns how many rows that is."""

    def track(self, update: StatusUpdate) -> None:
        """Bring the call up to date, atomically. Idempotent, and the same in whatever order updates come: an
        `in-progress` starts the call, the final status received first ends it for good, other statuses do neither.
        Costs nothing for what this thread has just recorded, as that was tracked with it."""

    def note_asked(self, call_id: str, now: float, *, unknown: bool) -> None:
        """Note on the call that the provider was asked after it, and whether it knew it."""

    def active(self, after: float = 0, until: float = inf, limit: int = -1) -> list[CallState]:
        """The calls that have started and not ended, newest start received first: those whose start was received after
        `after` and no later than `until`, and at most `limit` of them (-1: all)."""

    def count_active(self, after: float = 0, until: float = inf) -> int:
        """How many `active` finds without a limit, whatever their number at about the same cost."""

    def recent(self, limit: int, search: str = "") -> list[CallState]:
        """The calls heard of last, newest first; with `search`, those with that id or customer's number."""

    def call(self, call_id: str) -> tuple[CallState | None, list[Kept]]:
        """One call, and its updates in the order they were kept, with their rows."""

    def figures(self, since: float) -> list[Figures]:
        """What happened by hour, status and error, from the hour that `since` is in."""

    def updates(self, since: float = 0) -> Iterator[Kept]:
        """Every update kept at `since` or later, in that order, read in pages: nothing is held up meanwhile."""

    def backlog(self) -> list[Backlog]:
        """What is pending and failed, by handler."""

    def claim_report(
        self, update: StatusUpdate, handler: str, now: float, interval: float, lease: float
    ) -> Report | None:
        """Atomically claim until `now` + `lease`, for the one who reports them, the error of `update` and all alike
        that `handler` has rows for. None where a settled report covers the update, or it is not kept; the wait, where
        such an error was reported less than `interval` seconds ago or is claimed."""

    def settle_report(self, update: StatusUpdate, report: Report, now: float) -> None:
        """Atomically note that what was claimed has been reported, and end the claim."""

    def claim(self, chore: str, now: float, seconds: float) -> bool:
        """Atomically take on a chore for `seconds`: True for one of all processes, until they are over."""

    def count_refusals(self, refused: Iterable[Refused]) -> None:
        """Atomically add to what was refused for each reason in the hour that its `latest` is in."""

    def refusals(self, since: float) -> list[Refused]:
        """What was refused for each reason, from the hour that `since` is in; most often first."""

    def check(self) -> float | None:
        """When the last update was received. Raises StoreError if an update could not be kept now."""

    def advice(self) -> list[str]:
        """What is worth knowing or doing about the engine as it is set up, a sentence each."""

    def forget(self, number: str) -> dict[str, int]:
        """Atomically remove every call of the customer with this number, and every call whose id contains it (if it
        ends in six digits, for fewer are in anybody's), with updates and rows. Returns how many `calls`, `updates` and
        `rows`."""

    def prune(self, before: float, limit: int) -> tuple[int, int]:
        """Atomically remove at most `limit` updates received before `before` that have nothing pending, and at most
        `limit` calls left without any. Returns how many updates and calls; (0, 0) when nothing is left to prune.
        Refusals of earlier hours go too."""

    def drain(self, now: float) -> None:
        """Move what waits in the spool into the store. Raises StoreError while that cannot be reached."""

    def spooled(self) -> tuple[int, str]:
        """How many updates wait in the spool, and why."""

    def close(self) -> None:
        """Let go of every connection and file; the next verb opens them again."""


def create(config: dict[str, Any]) -> Store:
    """The store that the settings name. Opens nothing yet."""
    if config["REDIS_URL"]:
        from stores.redis import RedisStore
        from stores.spool import Spool, SpooledStore

        retention = config["RETENTION_DAYS"] * 24 * 3600
        store = RedisStore(config["REDIS_URL"], retention, verify_tls=config["REDIS_TLS_VERIFY"])
        return SpooledStore(store, Spool(f"{config['SQLITE_PATH']}.spool"))
    from stores.sqlite import SQLiteStore

    return SQLiteStore(config["SQLITE_PATH"])


def get_store() -> Store:
    return current_app.extensions["store"]
