"""People's numbers, in whatever form they were sent or are typed."""

import re

SHARED = 9  # digits at the end that two forms of one number share: 0612345678 and +31612345678
LONGEST = 300  # characters in which a URI is looked for, as that takes as long as their square

_URI = re.compile(r"(?:sips?:)?([^\s<>:;@\"]+)(?:[:;][^\s@]*)?@", re.IGNORECASE)
_NUMBER = re.compile(r"[+\s()./-]*\d[+\d\s()./-]*")


def user(number: str) -> str:
    """Whom a SIP URI names: `alice` for `sip:alice@example.com`. Any other text is returned as it is."""
    uri = _URI.search(number[:LONGEST])
    return uri[1] if uri else number.removeprefix("tel:")


def is_number(text: str) -> bool:
    """Whether this is a number, and not a name or an id."""
    return _NUMBER.fullmatch(user(text)) is not None


def digits(number: str) -> str:
    """The digits of a number; of a SIP URI those of its user."""
    text = user(number).replace("(0)", "")  # which is not dialled from abroad
    return "".join(str(int(character)) for character in text if character.isdecimal())


def are_same(one: str, other: str) -> bool:
    """Whether these are the digits of one number: all of them or, where both have so many, the last nine or more. The
    zeros that are dialled before a number do not count."""
    return one.lstrip("0") == other.lstrip("0") or _is_end(one, other) or _is_end(other, one)


def _is_end(digits: str, number: str) -> bool:
    return any(len(end) >= SHARED and number.endswith(end) for end in (digits, digits.lstrip("0")))
