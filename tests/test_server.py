"""The receiver as it runs in production, and in development: real processes, real ports, real services."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.conftest import ROOT, URL, message, payload, wait_until


def test_40_copies_at_once_have_their_effects_once(receiver, service):
    server = receiver(WEB_CONCURRENCY="2", CRM_WEBHOOK_URL=service.url, SLACK_WEBHOOK_URL=service.url)
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda _: server.post(payload("ended_with_error")), range(40)))
    assert {(answer.status_code, answer.text) for answer in answers} == {(200, "OK")}
    assert sorted("text" in body for body in service.bodies) == [False, True]
    [line] = server.exported()
    assert (line["pending"], line["failed"]) == ([], [])
    events = [line["event"] for line in server.lines()]
    assert (events.count("update"), events.count("repeat")) == (1, 39)


def test_the_log_is_json_and_shows_no_number(receiver):
    server = receiver()
    server.post(payload("ended_with_assistant"))
    text = server.log.read_text()
    assert [json.loads(line) for line in text.splitlines()]
    assert "+31612345678" not in text and "+316***78" in text


def test_a_body_in_chunks_without_a_length(receiver):
    server = receiver()
    body = json.dumps(message()).encode()
    answer = requests.post(server.url + URL, data=iter([body[:9], body[9:]]), timeout=10)
    assert answer.text == "OK"
    too_large = requests.post(server.url + URL, data=iter([b" " * 65536] * 32), timeout=10)
    assert too_large.status_code == 413


def test_a_body_of_2_mib(receiver):
    assert requests.post(receiver().url + URL, data=b" " * 2**21, timeout=10).status_code == 413


def test_flask_run_serves_the_same_and_needs_no_secret_on_this_machine(receiver):
    server = receiver("flask", "run", "--port", "PORT", ALLOW_UNSIGNED="", DASHBOARD_PASSWORD="")
    assert server.post(message()).text == "OK"
    [call] = requests.get(f"{server.url}/calls.json", timeout=5).json()["active"]
    assert call["id"] == "call-1"


GUNICORN, NONSENSE = ("gunicorn", "app:app"), {"RETENTION_DAYS": "soon"}


@pytest.mark.parametrize(
    ("command", "settings", "line"),
    [
        (GUNICORN, NONSENSE, "RETENTION_DAYS must be "),
        (("flask", "run"), NONSENSE, "RETENTION_DAYS must be "),
        (("flask", "export"), NONSENSE, "RETENTION_DAYS must be "),
        (GUNICORN, {"DATABASE_URL": "sqlite:///calls.db"}, "DATABASE_URL must start with postgres:// or "),
        (GUNICORN, {"REDIS_URL": "redis://redis:6379", "DYNO": "web.1"}, "REDIS_URL keeps no updates any more, "),
    ],
)
def test_a_nonsense_setting_ends_it_in_one_line(command, settings, line):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env=settings | {"PORT": "0"},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(line)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [("gunicorn", "app:app"), ("flask", "run", "--port", "PORT"), ("make", "run")])
def test_a_port_in_use_ends_it_in_one_line(command, receiver):
    port = str(receiver("flask", "run", "--port", "PORT").port)
    if command[0] == "make" and not (ROOT / ".venv/installed").exists():
        pytest.skip("make run runs in .venv, which make installs")
    command = [part.replace("PORT", port) for part in command]
    done = subprocess.run(
        command if command[0] == "make" else [sys.executable, "-m", *command],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PORT": port, "SQLITE_PATH": os.devnull},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode
    [line] = [line for line in done.stderr.splitlines() if not line.startswith("make: ***")]
    assert f":{port}: Address already in use" in line
    assert "Takes status updates" not in done.stdout


def test_a_receiver_can_listen_at_a_unix_socket_which_a_second_one_does_not_take(receiver, tmp_path):
    path = tmp_path / "receiver.sock"
    command = ("gunicorn", "--bind", "127.0.0.1:PORT", "--bind", f"unix:{path}", "app:app")
    server = receiver(*command)
    [line] = [line for line in server.lines() if line["event"] == "starting"]
    assert line["address"] == [f"127.0.0.1:{server.port}", str(path)]
    body = json.dumps(message()).encode()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        head = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        assert client.makefile().read().endswith("\n\nOK")
    second = [sys.executable, "-m", "gunicorn", "--bind", f"unix:{path}", "app:app"]
    done = subprocess.run(second, cwd=ROOT, env=server.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    says = "Address already in use. Choose another address, or stop the program that uses it."
    assert done.stderr == f"Cannot listen at {path}: {says}\n"
    assert path.is_socket()


def test_sigterm_ends_it_with_exit_code_0(receiver):
    server = receiver(WEB_CONCURRENCY="2")
    server.post(message())
    server.process.send_signal(signal.SIGTERM)
    assert wait_until(lambda: server.process.poll() is not None)
    assert server.process.returncode == 0
