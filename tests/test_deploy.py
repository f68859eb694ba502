"""From a push to the first call: the Procfile, `flask check --url`, and what start-up tells."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import requests

from schemas.settings import SETTINGS
from tests.conftest import PASSWORD, ROOT, SECRET, message

pytest.importorskip("honcho", reason="honcho is in requirements-dev.txt")


@pytest.fixture
def deployment(receiver):
    """The Procfile's web process, as platforms start it, but on loopback."""

    def start(**settings):
        command = ("honcho", "--no-colour", "start")
        return receiver(*command, WEB_CONCURRENCY="2", GUNICORN_CMD_ARGS="--bind=127.0.0.1:PORT", **settings)

    return start


def events(server):
    """The log without honcho's prefix."""
    lines = server.log.read_text().splitlines()
    return [json.loads(line[line.index("{") :]) for line in lines if '| {"time"' in line]


def test_under_gunicorn_nothing_is_local(deployment):
    """Through a raw TCP tunnel a stranger's request is like these."""
    server = deployment(ALLOW_UNSIGNED="", DASHBOARD_PASSWORD="")
    assert server.post(message()).status_code == 401
    for path in ("", "live", "calls.json", "calls?id=call-1", "export"):
        assert requests.get(f"{server.url}/{path}", headers={"Host": "localhost"}, timeout=5).status_code == 403
    assert requests.get(f"{server.url}/healthz", timeout=5).status_code == 200


def test_starting_tells_once_what_is_on_and_warns(deployment):
    server = deployment(DYNO="web.1", CRM_TOKEN="hush", ALLOW_UNSIGNED="", DASHBOARD_PASSWORD="")
    [line] = [line for line in events(server) if line["event"] == "starting"]
    assert line["on"] == ["CRM_TOKEN"]
    assert "WEBHOOK_SECRET" in line["off"] and "SQLITE_PATH" not in line["off"]
    warnings = [line["event"] for line in events(server) if line["level"] == "WARNING"]
    for word in ("WEBHOOK_SECRET", "disk", "DASHBOARD"):
        assert any(word in warning for warning in warnings)
    assert "hush" not in server.log.read_text()


def test_check_tells_whether_a_deployment_is_right_and_leaves_no_trace(deployment):
    server = deployment(WEBHOOK_SECRET=SECRET)
    done = server.flask("check", "--url", server.url)
    assert done.returncode == 0, done.stdout
    assert re.findall("expected (.*), answered (.*)", done.stdout) == [("422", "422"), ("401", "401"), ("401", "401")]
    assert server.exported() == []
    page = requests.get(server.url, timeout=5, auth=("", PASSWORD), headers={"Accept": "text/html"}).text
    assert "No updates yet" in page and "Needs attention" not in page
    assert "ERROR" not in {line["level"] for line in events(server)}
    server.environment["WEBHOOK_SECRET"] = "another secret"
    done = server.flask("check", "--url", server.url)
    assert done.returncode == 1
    assert "no status update                     expected 422, answered 401" in done.stdout
    assert "WEBHOOK_SECRET" in done.stderr


def test_check_can_send_a_call_through_every_handler(deployment, service):
    server = deployment(WEBHOOK_SECRET=SECRET, CRM_WEBHOOK_URL=service.url, SLACK_WEBHOOK_URL=service.url)
    assert server.flask("check", "--url", server.url, "--send").returncode == 0
    assert sorted("text" in body for body in service.bodies) == [False, False, True]
    assert any("TEST CALL" in body.get("text", "") for body in service.bodies)
    assert [line["message"]["phone_number"]["name"] for line in server.exported()] == ["TEST CALL"] * 2


def test_check_works_on_a_laptop_without_a_secret(receiver):
    server = receiver()
    assert server.flask("check", "--url", server.url).returncode == 0


def test_check_needs_an_answer(runner):
    result = runner.invoke(args=["check", "--url", "http://127.0.0.1:9"])
    assert result.exit_code == 1
    assert "Connection refused" in result.output


def test_app_json_generates_the_secrets_and_names_only_settings():
    env = json.loads((ROOT / "app.json").read_text())["env"]
    assert env.keys() <= SETTINGS.keys()
    generated = {name for name, each in env.items() if each.get("generator") == "secret"}
    assert generated == {"WEBHOOK_SECRET", "DASHBOARD_PASSWORD"}


def test_without_requirements_dev_the_app_starts():
    """Nothing but requirements.txt is imported."""
    blocked = "import sys; sys.modules.update(dict.fromkeys(('hypothesis', 'honcho', 'mypy'))); import app"
    subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, check=True, env={})


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("port", ["abc", "0", "65536", "80 81"])
def test_make_refuses_what_is_no_port_in_one_line_before_it_installs_anything(port):
    environment = {"PATH": os.environ["PATH"]}
    done = subprocess.run(["make", "run", f"PORT={port}"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode and not done.stdout
    assert re.fullmatch(r".*PORT must be a number from 1 to 65535\..*\n", done.stderr)
