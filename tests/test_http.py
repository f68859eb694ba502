"""What a handler sends to a service, and what it makes of the answer or of none, over HTTP and TLS."""

import gzip
import json
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from flask import g

from handlers import http
from handlers.errors import DoneBefore, GiveUp, NotFound, OutOfPatience, Retry, Unavailable
from handlers.http import get, post
from tests.conftest import ROOT, free_port

CERTIFICATE = ROOT / "tests/self_signed.pem"
LONG_AGO = format_datetime(datetime(2000, 1, 1, tzinfo=UTC), usegmt=True)


@pytest.fixture(autouse=True)
def context(app, monkeypatch):
    """As a worker asks, with little patience, and a session of the test's own."""
    monkeypatch.setattr(http, "FRESH", 1e9)
    http._session.cache_clear()
    with app.app_context():
        g.patience = (0.5, 0.5)
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
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    return tls


def test_it_posts_json_and_returns_the_answer(service):
    assert post(f"{service.url}/x?a=b", {"a": "é"}, {"X-Extra": "1"}) == "ok"
    [(path, headers, body)] = service.requests
    assert headers["User-Agent"] == "call-status-receiver/1.0"
    assert (path, json.loads(body), headers["X-Extra"]) == ("/x?a=b", {"a": "é"}, "1")
    assert headers["Content-Type"] == "application/json"


def test_a_connection_is_used_again_but_not_one_that_a_firewall_may_have_forgotten(service, monkeypatch):
    peers = []
    service.default = lambda request: (peers.append(request.client_address), request.answer())
    for _ in range(3):
        post(service.url, {})
    monkeypatch.setattr(http, "FRESH", 1e-6)
    post(service.url, {})
    assert [len(set(peers[:3])), len(set(peers))] == [1, 2]


def test_cookies_are_not_kept(service):
    service.default = (200, {"Set-Cookie": "session=1; Path=/"}, b"ok")
    for _ in range(2):
        post(service.url, {})
    assert not any("Cookie" in headers for _, headers, _ in service.requests)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, Unavailable) for status in (429, 500, 501, 503)),  # the service's own failure
        *((status, Retry) for status in (400, 401, 403, 422)),
        *((status, Retry) for status in (300, 301, 302, 303, 304, 307, 308)),
        (404, NotFound),
        (409, DoneBefore),
        (410, GiveUp),
    ],
)
def test_what_is_not_taken_is_tried_again_and_no_redirect_is_followed(service, status, error):
    service.default = (status, {"Location": f"{service.url}/elsewhere"})
    with pytest.raises(error, match=f"^answered {status}$") as caught:
        post(service.url, {})
    assert type(caught.value) is error
    assert len(service.requests) == 1


def test_a_208_is_taken(service):
    service.default = (208, {}, b"known")
    assert post(service.url, {}) == "known"


def test_the_reason_is_what_the_service_says_in_one_line_and_no_more_than_200_characters_of_it(service):
    service.default = (422, {}, b'{"error":\n "no such field: phone"}')
    with pytest.raises(Retry, match='^answered 422: {"error": "no such field: phone"}$'):
        post(service.url, {})
    service.default = (500, {}, b"x" * 500)
    with pytest.raises(Retry) as caught:
        post(service.url, {})
    assert len(str(caught.value)) == 200


def test_a_connection_that_is_cut_is_the_services_failure_and_no_reason_has_the_url_or_a_header(service):
    service.default = lambda request: request.connection.shutdown(socket.SHUT_RDWR)
    for url, reason in (
        (f"http://127.0.0.1:{free_port()}", "Connection refused"),
        (service.url, "no connection or no"),
    ):
        with pytest.raises(Unavailable, match=reason) as caught:
            post(f"{url}/secret-path", {}, {"Authorization": "Bearer secret-token"})
        assert "secret" not in str(caught.value)


def test_a_name_that_is_not_found_is_told_as_such():
    with pytest.raises(Unavailable, match="Name or service not known"):
        post("http://nowhere.invalid/", {})


def test_what_is_no_http_is_no_valid_answer(service):
    service.default = lambda request: request.wfile.write(b"<html>hello</html>\r\n\r\n")
    with pytest.raises(Unavailable, match="no valid answer"):
        post(service.url, {})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7),
        ("0", None),
        ("9999", 9999),
        (LONG_AGO, None),
        ("soon", None),
        ("-5", None),
        ("", None),
        ("\xb2", None),
        ("Sat, 99 Dec 2025 99:00:00 GMT", None),
    ],
)
def test_retry_after_is_read(service, value, seconds):
    service.default = (429, {"Retry-After": value})
    with pytest.raises(Unavailable) as caught:
        post(service.url, {})
    assert caught.value.after == seconds


def test_retry_after_can_be_a_date(service):
    service.default = (503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)})
    with pytest.raises(Unavailable) as caught:
        post(service.url, {})
    assert 90 < caught.value.after <= 100


def test_credentials_in_the_url_are_sent_and_our_own_authorization_is_replaced_by_no_netrc(
    service, tmp_path, monkeypatch
):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    post(service.url, {}, {"Authorization": "Bearer token"})
    post(service.url, {})
    post(service.url.replace("//", "//user:p%40ss@"), {})
    assert [headers.get("Authorization") for _, headers, _ in service.requests] == [
        "Bearer token",
        None,
        "Basic dXNlcjpwQHNz",
    ]


def test_a_proxy_of_the_environment_is_used(service, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", service.url)
    post("http://crm.example.com/x", {})
    assert service.requests[0][0] == "http://crm.example.com/x"


def test_without_a_workers_patience_a_request_waits_little_and_that_is_not_the_services_failure(app, service, hanging):
    del g.patience
    app.config["REQUEST_PATIENCE"] = (0.1, 0.1)
    with pytest.raises(OutOfPatience):
        post(service.url, {})
    g.patience = (0.1, 0.1)
    service.answers = [hanging]
    with pytest.raises(Unavailable, match="no answer in 0 s"):
        post(service.url, {})


@pytest.mark.parametrize("packed", [True, False])
def test_answers_are_read_up_to_64_kb(service, packed):
    body = gzip.compress(b"0" * 10**8) if packed else b"0" * 10**6
    service.default = (200, {"Content-Encoding": "gzip"} if packed else {}, body)
    assert len(post(service.url, {})) == 64 * 1024


def test_an_answer_in_chunks_is_read_whole(service):
    def chunks(request):
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        request.wfile.write(b"2\r\nok\r\n3\r\n!!!\r\n0\r\n\r\n")

    service.default = chunks
    assert post(service.url, {}) == "ok!!!"


def test_a_certificate_that_nobody_knows_is_refused(tls):
    with pytest.raises(Unavailable, match="certificate verify failed"):
        post(tls.url, {})
    assert tls.requests == []


def test_a_certificate_of_another_host_is_refused(trusted):
    assert post(trusted.url, {}) == "ok"
    with pytest.raises(Unavailable, match="certificate verify failed"):
        post(trusted.url.replace("localhost", "127.0.0.1"), {})


@pytest.mark.parametrize("server", ["service", "trusted"])
def test_an_answer_that_trickles_is_given_up_and_the_next_request_is_not(server, request):
    service, cut = request.getfixturevalue(server), threading.Event()

    def trickle(request):
        request.send_response(200)
        request.send_header("Content-Length", "100000")
        request.end_headers()
        try:
            while not cut.wait(0.01):
                request.wfile.write(b"H")
        except OSError:
            cut.set()

    assert post(service.url, {}) == "ok"
    service.answers = [trickle]
    with pytest.raises(Unavailable, match="no answer in"):
        post(service.url, {})
    assert cut.wait(20)
    assert get(service.url) == "ok"


def test_tls_that_is_never_agreed_on_is_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unavailable, match="no answer in"):
        post(f"https://127.0.0.1:{silent.getsockname()[1]}", {})
