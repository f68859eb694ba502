"""What is kept on a Redis server, as it comes and goes."""

import json
import struct

from stores.records import CallState, Kept, Row


def as_text(time: float | None) -> str | None:
    return None if time is None else repr(time)


def as_time(text: str | None) -> float | None:
    return None if text is None else float(text)


def sortable(time: float) -> str:
    """A text that sorts among others as its time does, which is not negative."""
    return struct.pack(">d", time).hex()


def as_row(found: list) -> Row:
    handler, due, text = found
    row = json.loads(text)
    return Row(handler, as_time(due), row["attempts"], as_time(row.get("first_tried")), row.get("error"))


def as_kept(found: list, *, with_rows: bool = True) -> Kept:
    _position, call_id, status, received_at, kept_at, message, rows = found
    rows = tuple(map(as_row, sorted(rows))) if with_rows else ()
    return Kept(call_id, status, float(received_at), float(kept_at), message, rows)


def as_calls(found: list) -> list[CallState]:
    times = ("received_at", "started_at", "start_received_at", "ended_at", "end_received_at", "asked_at")
    names = [name for name in CallState.__slots__ if name != "id"]
    calls = []
    for id, text in found:
        state = json.loads(text)
        values = {name: as_time(state.get(name)) if name in times else state.get(name) for name in names}
        calls.append(CallState(id, **values | {"unknown": bool(values["unknown"])}))
    return calls
