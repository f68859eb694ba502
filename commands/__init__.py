"""The `flask` commands."""

import click
from flask import Flask
from werkzeug.serving import is_running_from_reloader

from commands.check import check
from commands.forget import forget
from commands.reconcile import reconcile
from commands.retry import retry
from commands.simulate import simulate
from commands.transfer import export, import_
from config import check_free


def init_app(app: Flask) -> None:
    for command in (check, simulate, export, import_, retry, reconcile, forget):
        app.cli.add_command(command)
    _check_port()


def _check_port() -> None:
    """Where this is `flask run`, end it in one line unless it can listen at its port."""
    context = click.get_current_context(silent=True)
    if context and context.info_name == "run" and not is_running_from_reloader():
        host, port = context.params["host"], context.params["port"]
        check_free(host.removeprefix("unix://") if host.startswith("unix://") else (host, port))
