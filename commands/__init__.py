"""The `flask` commands."""

from flask import Flask

from commands.check import check
from commands.forget import forget
from commands.reconcile import reconcile
from commands.retry import retry
from commands.simulate import simulate
from commands.transfer import export, import_


def init_app(app: Flask) -> None:
    for command in (check, simulate, export, import_, retry, reconcile, forget):
        app.cli.add_command(command)
