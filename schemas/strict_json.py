"""JSON as anybody's reader and every database take it, and no deeper than anything here can walk."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 64
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NULs, and halves of surrogate pairs


def parse_json(body: bytes) -> Any:
    """The document in `body`, as `storable` makes it. What is no UTF-8 becomes U+FFFD, a byte order mark is passed
    over, and the last of duplicate keys wins. Raises ValueError."""
    text = body.decode("utf-8-sig", "replace").replace("\0", "\ufffd")
    try:
        return storable(json.loads(text))
    except RecursionError:
        raise ValueError("too deep") from None


def storable(value: Any, levels: int = MAX_DEPTH) -> Any:
    """`value` with U+FFFD for each NUL and half surrogate, in names and values at any depth, and null for NaN and
    infinities. Raises ValueError where it nests arrays and objects more than `levels` deep; `[]` is one level."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, list | dict):
        return value
    if not levels:
        raise ValueError("too deep")
    if isinstance(value, list):
        return [storable(item, levels - 1) for item in value]
    return {storable(name): storable(item, levels - 1) for name, item in value.items()}
