"""Guesses at the dashboard's password, of which there are few in a minute."""

import threading
from collections import Counter

BY_ONE, BY_ALL = 10, 100  # wrong ones in a minute, from an address and in all


class Guesses:
    """One process's wrong passwords in the current minute."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._minute, self._wrong = 0, Counter()

    def too_many(self, address: str, wrong: bool, now: float) -> bool:
        """Whether a password from `address` is not even looked at; if it is, count it where it is `wrong`."""
        with self._lock:
            if self._minute != now // 60:
                self._minute, self._wrong = now // 60, Counter()
            if self._wrong[address] >= BY_ONE or self._wrong.total() >= BY_ALL:
                return True
            if wrong:
                self._wrong[address] += 1
            return False
