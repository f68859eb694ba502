"""The README is held to the code."""

import re

from app import app
from config import SETTINGS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def table(heading):
    """The first cells of the table below a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [row.split("|")[1].strip() for row in section.splitlines() if row.startswith("|")][2:]


def test_every_setting_is_in_the_table():
    assert [name.strip("`") for name in table("Settings")] == list(SETTINGS)


def test_every_default_is_the_one_in_the_table():
    for name, (_, default) in SETTINGS.items():
        [row] = [row for row in README.splitlines() if row.startswith(f"| `{name}`")]
        told = row.split("|")[2].strip().strip("`")
        assert told == {"()": "none", "None": "none", "False": "false", "True": "true"}.get(str(default), str(default))


def test_every_command_is_in_the_table():
    ours = {command.name for command in app.cli.commands.values()}
    assert {re.search(r"flask (\w+)", cell)[1] for cell in table("Commands")} == ours


def test_every_option_of_a_command_is_told():
    for command in app.cli.commands.values():
        [row] = [row for row in README.splitlines() if re.match(rf"\| `flask {command.name}[ `]", row)]
        options = {option for parameter in command.params for option in parameter.opts if option[0] == "-"}
        assert options == set(re.findall(r"--\w+", row))


def test_every_answer_is_in_the_table():
    assert [cell.split()[0] for cell in table("Answers")] == ["405", "413", "401", "400", "200", "422", "503", "200"]
