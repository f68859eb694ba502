"""The store on a Redis 7 or Valkey 9 server, which any number of machines share: each verb is one script, redis.lua.

| key | type | what |
|---|---|---|
| `active_calls` | set | the ids of the calls that have started and not ended, for anybody to read |
| `receiver:updates:<id>` | hash | a call's updates by status (MessagePack), its rows by status and handler (JSON) |
| `receiver:kept` | zset | the updates by when they were kept (as texts) |
| `receiver:settled` | zset | the updates with nothing pending by when they were received |
| `receiver:position` | number | how many updates there ever were, to order those kept at one time |
| `receiver:numbers` | zset | the updates by customer's number |
| `receiver:calls` | hash | what is known of each call (JSON) |
| `receiver:recent` | zset | the calls by when they were first heard of |
| `receiver:customers` | zset | the calls by customer's number, and by when they were first heard of |
| `receiver:endings` | zset | the calls by the numbers in their ids, backwards |
| `receiver:bare` | zset | the calls without any update, for pruning |
| `receiver:figures`, `receiver:hours` | hash, zset | the figures by hour, status and error, and the same by hour |
| `receiver:handlers` | set | the handlers that have, or lately had, rows |
| `receiver:due:<handler>`, `receiver:waiting:<handler>` | zsets | pending rows by due time, and by receipt |
| `receiver:failed:<handler>` | set | failed rows |
| `receiver:errors:<handler>` | zset | the rows with an error by due time |
| `receiver:claims` | hash | until when a chore is taken on |
| `receiver:reports` | hash | up to which position alike errors have been reported, and when last (JSON) |
| `receiver:refusals` | hash | how often updates were refused, by hour and reason, and when last |
| `receiver:check` | string | what `check` writes |

An update expires when its call was not written to for as long as updates are kept, everything else when nothing was
written at all for so long; what is pending does not, nor, while anything is, what finds it. Where an update expired
before it was pruned, pruning takes it out of the indexes. One server, no cluster: the script makes names of keys.
"""

import json
from collections.abc import Iterable, Iterator
from math import inf
from typing import Any

from schemas.status_update import IN_PROGRESS, StatusUpdate, dump
from stores.records import Backlog, CallState, Figures, Kept, Refused, Report, Row, Tracked
from stores.redis_server import RedisServer, given
from stores.redis_values import as_calls, as_kept, as_row, as_text, as_time, sortable

PAGE = 200
BYTES_AN_UPDATE = 1450  # of the server's memory, settled, of a call with two; measured


class RedisStore:
    """The contract is in `stores.Store`. `retention`: for how many seconds updates are kept."""

    name = "redis"

    def __init__(self, url: str, retention: int, **options: Any):
        self._server = RedisServer(url, retention, **options)
        self._tracked = Tracked()
        self.durability = f"{self._server.address}: what is acknowledged survives what that server's persistence does"

    def advice(self) -> list[str]:
        info, found = self._server.info(), []
        policy, limit = info.get("maxmemory_policy", "noeviction"), int(info.get("maxmemory", 0))
        if limit and policy != "noeviction":
            found.append("When full, this server throws away what is kept: set its maxmemory-policy to noeviction.")
        if info.get("aof_enabled") == "0":
            found.append("This server appends to no file: its restart loses what came since its last snapshot, or all.")
        left = max(limit - int(info.get("used_memory", 0)), 0) // BYTES_AN_UPDATE
        if limit:
            found.append(f"About {left:,} more updates fit into this server's memory.")
        return found

    def close(self) -> None:
        self._server.close()

    def record(
        self,
        update: StatusUpdate,
        pending: Iterable[str],
        due: float,
        *,
        now: float,
        leased: bool = True,
        failed: Iterable[str] = (),
    ) -> bool:
        pending = list(pending)
        added = self._server.run(
            "record",
            id=update.call.id,
            status=update.call.status,
            received_at=repr(update.received_at.timestamp()),
            kept_at=repr(now),
            kept=sortable(now),
            customer=update.customer.number,
            message=json.dumps(dump(update)),
            alike=update.alike,
            handlers=[*pending, *failed],
            pending=len(pending),
            due=repr(due),
            leased=leased,
            state=_state(update),
        )
        if added:
            self._tracked.last = update
        return bool(added)

    def settle(self, update: StatusUpdate, lease: float, done: Iterable[str], failures: Iterable[Row]) -> None:
        rows = [
            given(
                handler=row.handler,
                due=as_text(row.due),
                attempts=row.attempts,
                first_tried=as_text(row.first_tried),
                # An error may quote a surrogate, which cannot be encoded.
                error=row.error and row.error.encode("utf-8", "replace").decode(),
            )
            for row in failures
        ]
        key = {"id": update.call.id, "status": update.call.status}
        self._server.run("settle", **key, lease=repr(lease), done=list(done), failures=rows)

    def take(self, handler: str, now: float, lease: float) -> tuple[Kept, Row] | None:
        taken = self._server.run("take", handler=handler, now=repr(now), lease=repr(lease))
        return taken and (as_kept(taken[0], with_rows=False), as_row(taken[1]))

    def hurry(self, now: float, *, failed: bool = False, call_id: str | None = None, handler: str | None = None) -> int:
        return self._server.run("hurry", now=repr(now), failed=failed, call_id=call_id, handler=handler)

    def track(self, update: StatusUpdate) -> None:
        if update is not self._tracked.last:
            self._server.run("track", id=update.call.id, state=_state(update))

    def active(self, after: float = 0, until: float = inf, limit: int = -1) -> list[CallState]:
        found = [call for call in as_calls(self._server.run("active")) if after < call.start_received_at <= until]
        found.sort(key=lambda call: call.start_received_at, reverse=True)
        return found if limit < 0 else found[:limit]

    def count_active(self, after: float = 0, until: float = inf) -> int:
        return len(self.active(after, until))

    def recent(self, limit: int, search: str = "") -> list[CallState]:
        found = {call.id: call for call in as_calls(self._server.run("recent", limit=limit, search=search or None))}
        return sorted(found.values(), key=lambda call: call.received_at, reverse=True)[:limit]

    def call(self, call_id: str) -> tuple[CallState | None, list[Kept]]:
        state, updates = self._server.run("call", id=call_id)
        # Each starts with its position.
        return (as_calls([(call_id, state)])[0] if state else None), [as_kept(update) for update in sorted(updates)]

    def figures(self, since: float) -> list[Figures]:
        found = []
        for field, value in self._server.run("figures", since=repr(since - since % 3600)):
            (hour, status, error), (calls, timed, seconds, latest) = field.split("\t", 2), value.split()
            found.append(Figures(int(hour), status, error, int(calls), int(timed), float(seconds), float(latest)))
        return found

    def updates(self, since: float = 0) -> Iterator[Kept]:
        after = f"[{sortable(max(since, 0))}"
        while after:
            last, page = self._server.run("updates", after=after, limit=PAGE)
            yield from map(as_kept, page)
            after = last and f"({last}"

    def backlog(self) -> list[Backlog]:
        return [
            Backlog(handler, pending, failed, as_time(oldest), error)
            for handler, pending, failed, oldest, error in sorted(self._server.run("backlog"))
            if pending or failed
        ]

    def count_refusals(self, refused: Iterable[Refused]) -> None:
        counted = [
            {"hour": int(each.latest // 3600) * 3600, "reason": each.reason, "times": each.times, "latest": each.latest}
            for each in refused
        ]
        self._server.run("count_refusals", refused=counted)

    def refusals(self, since: float) -> list[Refused]:
        found: dict[str, Refused] = {}
        fields = iter(self._server.run("refusals"))
        for field, value in zip(fields, fields, strict=True):
            (hour, reason), (times, latest) = field.split("\t"), value.split()
            if int(hour) >= since - since % 3600:
                known = found.get(reason, Refused(reason, 0, 0.0))
                found[reason] = Refused(reason, known.times + int(times), max(known.latest, float(latest)))
        return sorted(found.values(), key=lambda each: -each.times)

    def check(self) -> float | None:
        return as_time(self._server.run("check"))

    def forget(self, number: str) -> dict[str, int]:
        return dict(zip(("calls", "updates", "rows"), self._server.run("forget", number=number), strict=True))

    def prune(self, before: float, limit: int) -> tuple[int, int]:
        updates, calls = self._server.run("prune", before=repr(before), limit=limit)
        return updates, calls

    def note_asked(self, call_id: str, now: float, *, unknown: bool) -> None:
        self._server.run("note_asked", id=call_id, now=repr(now), unknown=unknown)

    def claim(self, chore: str, now: float, seconds: float) -> bool:
        return bool(self._server.run("claim", chore=chore, now=repr(now), seconds=seconds))

    def claim_report(
        self, update: StatusUpdate, handler: str, now: float, interval: float, lease: float
    ) -> Report | None:
        key = {"id": update.call.id, "status": update.call.status}
        found = self._server.run("claim_report", **key, handler=handler, now=repr(now), interval=interval, lease=lease)
        return found and Report(float(found[0]), found[1], found[2])

    def settle_report(self, update: StatusUpdate, report: Report, now: float) -> None:
        self._server.run("settle_report", alike=update.alike, upto=report.upto, now=repr(now))


def _state(update: StatusUpdate) -> dict[str, str]:
    """What `update` tells of its call."""
    call, line, received_at = update.call, update.phone_number, repr(update.received_at.timestamp())
    state = {"status": call.status, "type": call.type, "line": line.number, "line_name": line.name}
    state |= {"customer": update.customer.number, "received_at": received_at}
    if call.status == IN_PROGRESS:
        state |= {"started_at": repr(update.timestamp.timestamp()), "start_received_at": received_at}
    elif update.is_final:
        state |= {"ended_at": repr(update.timestamp.timestamp()), "end_received_at": received_at}
        state |= {"error": update.error, "end_reason": update.end_reason}
    return given(**state)
