"""The README is held to the code."""

import re

from app import app
from schemas.settings import SETTINGS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def rows(heading):
    """The rows of the table below a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [row for row in section.splitlines() if row.startswith("|")][2:]


def test_every_setting_is_in_the_table_with_its_default():
    names = {"()": "none", "None": "none", "False": "false", "True": "true"}
    cells = [re.findall(r"\| `?(.*?)`? (?=\|)", row)[:2] for row in rows("Settings")]
    assert cells == [[name, names.get(str(default), str(default))] for name, default in SETTINGS.items()]


def test_every_command_is_in_the_table_with_its_options():
    assert {re.search(r"flask (\w+)", row)[1]: set(re.findall(r"--\w+", row)) for row in rows("Commands")} == {
        command.name: {option for parameter in command.params for option in parameter.opts if option[0] == "-"}
        for command in app.cli.commands.values()
    }


def test_every_answer_is_in_the_table():
    told = [row.split()[1] for row in rows("Answers")]
    assert told == ["405", "413", "401", "400", "200", "422", "503", "200"]
