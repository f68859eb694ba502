"""However a request is cut up on its way, it is answered as a whole."""

import json
import socket

import pytest
import requests

from tests.conftest import URL, message

BODY = json.dumps(message()).encode()
HEAD = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\n".encode()
WITH_LENGTH = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
START, REST = BODY[:9], BODY[9:]
CHUNKS = b"9\r\n%s\r\n%x;a=b\r\n%s\r\n0\r\nX: y\r\n\r\n" % (START, len(REST), REST)
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS
LAST = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def answers(server, *pieces):
    """What comes for pieces of requests, each of which is sent by itself, until the other end closes."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces:
            connection.sendall(piece)
        data = b""
        while more := connection.recv(65536):
            data += more
    return [part.split(b" ", 1)[0].decode() for part in data.split(b"HTTP/1.1 ")[1:]]


@pytest.fixture
def server(receiver):
    return receiver()


def test_it_takes_requests_in_whatever_pieces_they_come(server):
    sent = WITH_LENGTH + CHUNKED + WITH_LENGTH + LAST
    expected = ["200", "200", "200", "404"]
    assert answers(server, sent) == expected
    assert answers(server, *(bytes([byte]) for byte in sent)) == expected
    assert answers(server, *(sent[at : at + 100] for at in range(0, len(sent), 100))) == expected


def test_a_client_that_asks_whether_to_send_its_body_is_told_once(server):
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    assert answers(server, head, BODY, LAST) == ["100", "200", "404"]


def test_what_follows_a_request_that_is_refused_is_never_taken_for_another(server):
    for sent, status in (
        (HEAD + b"Content-Length: 3000000\r\n\r\n" + WITH_LENGTH, "413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + WITH_LENGTH, "400"),
        (HEAD + b"Content-Length: 9\r\n" + WITH_LENGTH[len(HEAD) :], "400"),
        (b"\x16\x03\x01\r\n\r\n" + WITH_LENGTH, "400"),
        (b"GET /" + b"x" * 70_000, "414"),
    ):
        assert answers(server, sent) == [status], sent[:200]


def test_whoever_sends_more_than_is_read_gets_the_answer_all_the_same(server):
    assert answers(server, HEAD + b"Content-Length: 3000000\r\n\r\n", b" " * 3_000_000) == ["413"]
    endless = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert answers(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", endless * 24) == ["413"]


def test_a_body_of_a_million_bytes_is_taken_and_one_of_2_mib_answered_even_in_chunks(server):
    body = json.dumps(message(error="x" * 1_000_000)).encode()
    assert requests.post(server.url + URL, data=body, timeout=30).text == "OK"
    too_large = requests.post(server.url + URL, data=iter([b" " * 65536] * 32), timeout=30)
    assert too_large.status_code == 413
