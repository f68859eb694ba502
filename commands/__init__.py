"""The `flask` commands, and how `flask run` serves."""

import logging
import signal
import sys

import click
from flask import Flask

from commands.check import check
from commands.forget import forget
from commands.reconcile import reconcile
from commands.retry import retry
from commands.simulate import simulate
from commands.transfer import export, import_
from schemas.settings import announce


def init_app(app: Flask) -> None:
    """Add the commands, and let `flask run` say what is on, log no request by itself, and end in good order when it is
    told to."""
    for command in (check, simulate, export, import_, retry, reconcile, forget):
        app.cli.add_command(command)
    context = click.get_current_context(silent=True)
    if context and context.info_name == "run":
        announce(app.config)
        logging.getLogger("werkzeug").addFilter(lambda record: " - - [" not in record.getMessage())
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
