"""The README's shell lines and its handler work as they stand there."""

import re
import shutil
import subprocess
import sys

import pytest

import dispatch
from tests.conftest import ROOT, free_port, update, wait_until

README = (ROOT / "README.md").read_text()
OPERATIONS = (ROOT / "docs/operations.md").read_text()
SERVERS = re.compile(r"make run|http\.server|fake_crm")


def blocks(heading, language="sh", text=README):
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", section, re.DOTALL | re.MULTILINE)


@pytest.fixture
def shell(tmp_path):
    """Run a README's lines in a clone of its own, on free ports; servers end with the test."""
    if not (ROOT / ".venv/installed").exists():
        pytest.skip("the README's lines run in .venv, which make installs")
    for tool in ("make", "curl", "jq", "sqlite3"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is not installed")
    clone = tmp_path / "clone"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in files:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, clone / name)
    (clone / ".venv").symlink_to(ROOT / ".venv")
    ports = {"8000": str(free_port()), "9000": str(free_port())}
    servers = []

    def run(lines, **environment):
        for port, free in ports.items():
            lines = lines.replace(port, free)
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "PORT": ports["8000"], **environment}
        environment["PATH"] = f"{sys.exec_prefix}/bin:{environment['PATH']}"
        command = ["bash", "-euc", lines]
        if SERVERS.search(lines):
            log = (tmp_path / f"{len(servers)}.log").open("w")
            server = subprocess.Popen(
                command, cwd=clone, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            servers.append((server, log))
            return server
        return subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=120)

    run.ports = ports
    yield run
    for server, log in servers:
        stop(server)
        log.close()


def stop(server):
    subprocess.run(["pkill", "-TERM", "-s", str(server.pid)], check=False)
    server.wait(30)


def health(shell):
    done = shell(f"curl -sf http://127.0.0.1:{shell.ports['8000']}/healthz")
    return done.stdout if done.returncode == 0 else None


def test_try_it(shell):
    serve, lines = blocks("Try it")
    shell(serve)
    wait_until(lambda: health(shell), 60)
    done = shell(lines)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith('OK{"counts"')
    assert '"active":[{"id":"5c4d030f-43e3-4e65-899e-8148521e660f"' in done.stdout
    assert re.search(r"\nOK\d+ answered 200\nslowest \d+ ms\n", done.stdout)
    assert done.stdout.splitlines()[-1].startswith('{"call_id": "5c4d030f')
    for lines in blocks("Analytics", text=OPERATIONS):
        done = shell(lines)
        assert done.returncode == 0, done.stderr
    assert "\tin-progress\t" in done.stdout


def test_when_things_break(shell):
    refusing, serve, lines, _ = blocks("When things break")
    shell(refusing)
    shell(serve)
    wait_until(lambda: health(shell), 60)
    done = shell(lines)
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d+ answered 200\n", done.stdout)
    assert re.search(r'"pending":[1-9]', done.stdout)


def test_the_handler_works_as_it_stands(app, service, monkeypatch):
    [code] = blocks("Add a handler in three steps", "python")
    assert len(code.splitlines()) <= 10
    names = {}
    exec(re.sub("^   ", "", code, flags=re.MULTILINE).replace("http://127.0.0.1:9000", service.url), names)
    monkeypatch.setattr(dispatch, "HANDLERS", (names["tell_web_team"],))
    with app.app_context():
        for status, kind in (("in-progress", "web_call"), ("ended", "web_call"), ("ended", "inbound_phone_call")):
            dispatch.dispatch(update(status, kind, call={"type": kind}))
    assert service.bodies == [{"id": "web_call", "error": None}]
