"""The README and the pages in docs/ are held to the code."""

import re

import pytest

from app import app
from schemas.settings import SETTINGS
from stores.refusals import REASONS
from tests.conftest import ROOT, message
from tests.test_readme import OPERATIONS, README, blocks


def rows(heading):
    """The rows of the table below a heading."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [row for row in section.splitlines() if row.startswith("|")][2:]


def test_the_readme_is_under_200_lines():
    assert len(README.splitlines()) < 200


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
    codes = [row.split()[1] for row in rows("Answers")]
    assert codes == ["405", "413", "415", "401", "400", "200", "422", "503", "200"]


@pytest.mark.parametrize("page", ["README.md", "docs/deploy.md", "docs/design.md", "docs/operations.md"])
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]*)#?([^)]*)\)", (ROOT / page).read_text())
    for name, anchor in links:
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), name
        headings = re.findall("^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [heading.lower().replace(" ", "-") for heading in headings]


def test_the_alerting_rules_name_gauges_and_reasons_that_there_are(client):
    client.post("/webhooks/status-update", json=message())
    gauges = re.findall(r"^# TYPE (\w+) gauge$", client.get("/metrics").text, re.MULTILINE)
    _, rules = blocks("Alerts", "yaml", OPERATIONS)
    names = set(re.findall(r"receiver_\w+", rules))
    assert rules.count("alert:") == 3 and names and names <= set(gauges)
    assert set(re.search('reason=~"(.*?)"', rules)[1].split("|")) <= REASONS.keys()
