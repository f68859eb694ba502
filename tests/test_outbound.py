"""Requests to services whose time is up, over HTTP and TLS."""

import socket
import ssl
import threading

import pytest
from conftest import ROOT
from urllib3.util import connection

from handlers import http as outbound
from handlers.http import Unavailable, get, post

CERTIFICATE = ROOT / "tests/self_signed.pem"


@pytest.fixture(autouse=True)
def context(app):
    app.config["OUTBOUND_TIMEOUT"] = 0.5
    with app.app_context():
        yield


@pytest.fixture
def tls(service):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    service.server.socket = context.wrap_socket(service.server.socket, server_side=True)
    service.url = f"https://localhost:{service.server.server_port}"
    return service


@pytest.fixture
def trusted(tls, monkeypatch):
    context = outbound._tls_context()
    context.load_verify_locations(CERTIFICATE)
    monkeypatch.setitem(outbound._http.connection_pool_kw, "ssl_context", context)
    return tls


def trickle(cut):
    def answer(request):
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        try:
            while not cut.wait(0.01):
                request.wfile.write(b"H")
        except OSError:
            cut.set()

    return answer


def test_a_certificate_that_nobody_knows_is_refused(tls):
    with pytest.raises(Unavailable, match="SSLError"):
        post(tls.url, {})
    assert tls.requests == []


def test_a_certificate_of_another_host_is_refused(trusted):
    assert post(trusted.url, {}) == "ok"
    with pytest.raises(Unavailable, match="SSLError"):
        post(trusted.url.replace("localhost", "127.0.0.1"), {})


@pytest.mark.parametrize("server", ["service", "trusted"])
def test_an_answer_that_trickles_is_cut_off_and_the_next_request_is_not(server, request):
    service, cut = request.getfixturevalue(server), threading.Event()
    assert post(service.url, {}) == "ok"
    service.answers = [trickle(cut)]
    with pytest.raises(Unavailable, match="no answer in time"):
        post(service.url, {})
    assert cut.wait(20)
    assert get(service.url) == "ok"


def test_tls_that_is_never_agreed_on_is_no_answer(service):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unavailable, match="no answer in time"):
        post(f"https://127.0.0.1:{silent.getsockname()[1]}", {})


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_name_that_is_looked_up_for_too_long_is_no_answer_and_its_late_connection_is_closed(monkeypatch):
    found, (ours, theirs) = threading.Event(), socket.socketpair()
    late = [ours]
    del ours
    monkeypatch.setattr(connection, "create_connection", lambda *args, **options: (found.wait(20), late.pop())[1])
    with pytest.raises(Unavailable, match="no answer in time"):
        post("http://slow-name.test", {})
    found.set()
    with theirs:
        theirs.settimeout(20)
        assert theirs.recv(1) == b""
