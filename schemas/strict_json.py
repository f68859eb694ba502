"""JSON as RFC 8259 has it, and no deeper than anything here can walk."""

import json
import math
from typing import Any

MAX_DEPTH = 64


def parse_json(body: bytes) -> Any:
    """The document in `body`: strict UTF-8 without a BOM, no NaN or infinities, at most MAX_DEPTH levels.

    Of duplicate keys the last wins. Raises ValueError.
    """
    try:
        document = _DECODER.decode(body.decode())
    except RecursionError:
        raise ValueError("too deep") from None
    # Fewer brackets than levels allowed cannot be too deep: most bodies are never walked.
    if body.count(b"[") + body.count(b"{") > MAX_DEPTH and is_deeper(document, MAX_DEPTH):
        raise ValueError("too deep")
    return document


def is_deeper(value: Any, levels: int) -> bool:
    """Whether `value` nests arrays and objects more than `levels` deep; `[]` is one level."""
    level = [value]
    for _ in range(levels + 1):
        level = [item for item in level if isinstance(item, dict | list)]
        if not level:
            return False
        level = [child for item in level for child in (item.values() if isinstance(item, dict) else item)]
    return True


def _not_json(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


_DECODER = json.JSONDecoder(parse_constant=_not_json, parse_float=_finite)  # built once, not per message
