"""This machine's time, in one place, so that tests can set it. What is kept goes by the store's own, `now()`."""

import time

from flask import current_app


def clock() -> float:
    """Unix seconds."""
    return (current_app.config["CLOCK"] or time.time)()
