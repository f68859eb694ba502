"""The README's shell lines and its handler work as they stand there."""

import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

import handlers
from intake.signature import sign
from tests.conftest import ROOT, SECRET, free_port, update
from work import lanes
from work.dispatch import dispatch

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
SERVERS = re.compile(r"make run|http\.server|fake_crm")
READY = "curl -sf --retry 60 --retry-delay 1 --retry-connrefused http://127.0.0.1:8000/healthz"


def blocks(heading, language="sh", text=README):
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def shell(tmp_path):
    """What a README's lines print, in a clone of its own and on free ports; servers among them end with the test."""
    for tool in ("make", "curl", "jq", "sqlite3"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    if subprocess.run(["make", "--question", ".venv/installed"], cwd=ROOT, stdout=subprocess.DEVNULL).returncode:
        pytest.skip("the README's lines run in .venv, which make installs or brings up to date")
    clone = tmp_path / "clone"
    for name in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split():
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    ports = {"8000": str(free_port()), "9000": str(free_port())}
    environment = {"PATH": f"{sys.exec_prefix}/bin:/usr/local/bin:/usr/bin:/bin", "PORT": ports["8000"]}
    servers = []

    def run(lines):
        for port, free in ports.items():
            lines = lines.replace(port, free)
        command, options = ["bash", "-euc", lines], {"cwd": clone, "env": environment}
        if SERVERS.search(lines):
            with (tmp_path / f"{len(servers)}.log").open("w") as log:
                servers.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options))
            return None
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, **options)
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    for server in servers:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_try_it(shell):
    first, lines = blocks("Try it")
    clone, serve = first.splitlines()
    assert clone.startswith("git clone ")
    shell(serve)
    shell(READY)
    printed = shell(lines)
    assert printed.startswith('OK{"counts"')
    assert '"active":[{"id":"5c4d030f-43e3-4e65-899e-8148521e660f"' in printed
    assert re.search(r"\nOKOK40 answered 200\n", printed)
    assert printed.splitlines()[-1].startswith('{"call_id": "5c4d030f')
    for lines in blocks("Analytics", text=OPERATIONS):
        printed = shell(lines)
    assert "\tin-progress\t" in printed


def test_when_things_break(shell):
    refusing, serve, lines, _ = blocks("When things break")
    shell(refusing)
    shell(serve)
    shell(READY)
    printed = shell(lines)
    assert re.search(r"\d+ answered 200\n", printed)
    assert re.search(r'"pending":[1-9]', printed)


def test_a_signature_is_made_as_it_says():
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    command = re.search("`(printf .*? openssl .*?)`", README)[1]
    environment = {"PATH": os.environ["PATH"], "TIMESTAMP": "1700000000", "BODY": '{"a":1}', "SECRET": SECRET}
    printed = subprocess.check_output(["bash", "-c", command], env=environment, text=True)
    assert f"sha256={printed.split()[-1]}" == sign(SECRET, 1700000000, b'{"a":1}')


def test_the_handler_works_as_it_stands(app, service, monkeypatch):
    [code] = blocks("Add a handler in three steps", "python")
    assert len(code.splitlines()) <= 10
    names = {}
    exec(re.sub("^   ", "", code, flags=re.MULTILINE).replace("http://127.0.0.1:9000", service.url), names)
    handler, wants = names["tell_web_team"], re.search("`tell_web_team: (lambda .*?)`", README)[1]
    monkeypatch.setattr(handlers, "HANDLERS", (handler,))
    monkeypatch.setitem(handlers.WANTS, handler, eval(wants))
    lanes.init_app(app)
    with app.app_context():
        for status, kind in (("in-progress", "web_call"), ("ended", "web_call"), ("ended", "inbound_phone_call")):
            dispatch(update(status, kind, call={"type": kind}))
    assert service.bodies == [{"id": "web_call", "error": None}]
