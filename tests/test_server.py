"""The receiver as it runs in production, and in development: real processes, real ports, real services."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.conftest import PASSWORD, ROOT, message, payload, query


def test_40_copies_at_once_have_their_effects_once_and_the_log_is_json_and_shows_no_number(receiver, service):
    server = receiver(WEB_CONCURRENCY="2", CRM_WEBHOOK_URL=service.url, SLACK_WEBHOOK_URL=service.url)
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: server.post(payload("ended_with_error")), range(40)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, "OK")}
    assert sorted("text" in body for body in service.bodies) == [False, True]
    [line] = server.exported()
    assert (line["pending"], line["failed"]) == ([], [])
    log = server.log.read_text()
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert (events.count("update"), events.count("repeat")) == (1, 39)
    assert any(event.startswith("Listening at") for event in events)  # gunicorn's own are there, too
    assert "+31612345678" not in log and "+316***78" in log


def test_flask_run_serves_the_same_and_needs_no_secret_on_this_machine(receiver):
    server = receiver("flask", "run", "--port", "PORT", ALLOW_UNSIGNED="", DASHBOARD_PASSWORD="")
    assert server.post(message()).text == "OK"
    [call] = requests.get(f"{server.url}/calls.json", timeout=5).json()["active"]
    assert call["id"] == "call-1"


def ended(*command, **environment):
    """A process that ends by itself, when it has ended."""
    if command[0] != "make":
        command = (sys.executable, "-m", *command)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("command", [("gunicorn", "app:app"), ("flask", "run"), ("flask", "export")])
def test_a_nonsense_setting_ends_it_in_one_line(command):
    done = ended(*command, PORT="0", RETENTION_DAYS="soon")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("RETENTION_DAYS: Not a valid integer.")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["gunicorn app:app", "flask run --port PORT"])
def test_a_port_in_use_ends_it(command, receiver):
    port = str(receiver("flask", "run", "--port", "PORT").port)
    done = ended(*command.replace("PORT", port).split(), PORT=port, SQLITE_PATH=os.devnull)
    assert done.returncode
    assert re.search(f"{port}.* in use", done.stdout + done.stderr)
    assert "Traceback" not in done.stdout + done.stderr


def test_gunicorn_refuses_to_speak_tls_in_one_line():
    done = ended("gunicorn", "--certfile", "tests/self_signed.pem", "app:app", PORT="0", SQLITE_PATH=os.devnull)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert "unset certfile and keyfile" in line


def test_a_receiver_can_listen_at_a_unix_socket(receiver, tmp_path):
    path = tmp_path / "receiver.sock"
    receiver("gunicorn", "--bind", "127.0.0.1:PORT", "--bind", f"unix:{path}", "app:app")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.makefile().readline() == "HTTP/1.1 200 OK\n"


FLASK_RUN = ("flask", "run", "--port", "PORT")


@pytest.mark.parametrize("command", [(), FLASK_RUN])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_at_a_clean_end_the_file_alone_has_everything_and_only_its_owner_reads_it(receiver, tmp_path, command, number):
    server = receiver(*command)
    assert server.post(message()).text == "OK"
    server.process.send_signal(number)
    server.process.wait(30)
    [file] = tmp_path.glob("calls.db*")
    assert file.stat().st_mode & 0o777 == 0o600
    assert query(file, "SELECT call_id, handlers FROM updates") == [("call-1", '["log_event"]')]
    assert query(file, "SELECT count(*) FROM jobs") == [(0,)]


def test_flask_run_logs_one_line_for_an_update_and_none_for_its_own_pages(receiver):
    server = receiver(*FLASK_RUN)
    before = len(server.lines())
    server.post(message())
    for path in ("/healthz", "/live", "/static/dashboard.js"):
        requests.get(server.url + path, auth=("", PASSWORD), timeout=10)
    assert [line["event"] for line in server.lines()[before:] if line["event"] != "pruned"] == ["update"]
    assert [line["event"] for line in server.lines()].count("starting") == 1
