"""JSON as anybody's reader and every database take it, and no deeper than anything here can walk."""

import json
import math
import re
from typing import Any

MAX_DEPTH = 64
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")  # NULs, and halves of surrogate pairs
_MAY_BE_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # escaped; whole pairs look the same


def parse_json(body: bytes) -> Any:
    """The document in `body`, at most MAX_DEPTH levels deep, with nothing in it that others cannot read.

    What is no UTF-8, NULs and half surrogates become U+FFFD; NaN and numbers out of range become null. A byte order
    mark is passed over, and the last of duplicate keys wins. Raises ValueError.
    """
    text = body.decode("utf-8-sig", "replace").replace("\0", "\ufffd")
    try:
        document = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("too deep") from None
    # Fewer brackets than levels allowed cannot be too deep: most bodies are never walked.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and is_deeper(document, MAX_DEPTH):
        raise ValueError("too deep")
    return clean(document) if _MAY_BE_UNSTORABLE.search(text) else document


def clean(value: Any) -> Any:
    """`value` with U+FFFD for each NUL and half surrogate, in names and values at any depth."""
    if isinstance(value, str):
        return _UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [clean(item) for item in value]
    if isinstance(value, dict):
        return {clean(name): clean(item) for name, item in value.items()}
    return value


def is_deeper(value: Any, levels: int) -> bool:
    """Whether `value` nests arrays and objects more than `levels` deep; `[]` is one level."""
    level = [value]
    for _ in range(levels + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _float(digits: str) -> float | None:
    number = float(digits)
    return None if math.isinf(number) else number


def _integer(digits: str) -> int | None:
    return None if math.isinf(float(digits)) else int(digits)


_DECODER = json.JSONDecoder(  # built once, not per message
    parse_constant=lambda _: None, parse_float=_float, parse_int=_integer
)
