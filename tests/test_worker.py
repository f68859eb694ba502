"""However a request is cut up on its way, it is answered as a whole."""

import json
import os
import socket
from contextlib import closing
from pathlib import Path
from selectors import DefaultSelector
from types import SimpleNamespace

import pytest
import requests
from gunicorn.config import Config
from gunicorn.workers.gthread import TConn

from intake import gunicorn_worker
from intake.gunicorn_worker import PIECE, is_whole
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


@pytest.mark.parametrize("request_", [LAST, WITH_LENGTH, CHUNKED], ids=["no body", "length", "chunks"])
def test_a_request_is_whole_with_its_last_byte_and_not_before(request_):
    assert [end for end in range(len(request_) + 1) if is_whole(request_[:end])] == [len(request_)]
    assert is_whole(request_ + LAST)
    assert is_whole(request_ + WITH_LENGTH[:-1].replace(b"{", b"{" + b" " * 5000, 1))  # sent ahead, as far as it goes


def test_chunks_may_end_with_long_trailers():
    request_ = CHUNKED.replace(b"X: y", b"X: " + b"y" * 5000)
    assert not is_whole(request_[:-1])
    assert is_whole(request_)


@pytest.mark.parametrize(
    "header",
    [
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 0",
        b"Content-Length: 4194305",
        b"Content-Length: " + b"9" * 5000,
        b"Content-Length: +9",
        b"Content-Length: 0\r\nContent-Length: 99",
    ],
)
def test_a_request_that_can_only_be_refused_is_not_waited_for(header):
    assert is_whole(HEAD + header + b"\r\n\r\n")
    assert is_whole(HEAD + b"X: " + b"x" * PIECE)
    assert is_whole(HEAD + b"Transfer-Encoding: chunked\r\n\r\n500000\r\n" + b"x" * 2**22)


def test_it_takes_requests_in_whatever_pieces_they_come(server):
    for request_, status in ((WITH_LENGTH, "200"), (CHUNKED, "200"), (LAST, "404")):
        closing = request_.replace(b"localhost\r\n", b"localhost\r\nConnection: close\r\n")
        assert answers(server, closing) == [status]
        assert answers(server, *(bytes([byte]) for byte in closing)) == [status]
        assert answers(server, *(closing[at : at + 100] for at in range(0, len(closing), 100))) == [status]


def test_a_connection_is_kept_for_the_next_request_but_not_where_that_was_sent_ahead(server):
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection, connection.makefile("rb") as lines:
        for request_ in (WITH_LENGTH, CHUNKED, WITH_LENGTH):
            connection.sendall(request_)
            assert lines.readline() == b"HTTP/1.1 200 OK\r\n"
            while lines.readline() != b"\r\n":
                pass
            assert lines.read(2) == b"OK"
    assert answers(server, WITH_LENGTH + WITH_LENGTH) == ["200"]


def test_a_client_that_asks_whether_to_send_its_body_is_told_once(server):
    head = HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(head)
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert answers(server, head.replace(b"Expect", b"Connection: close\r\nExpect") + BODY) == ["100", "200"]


@pytest.mark.parametrize("request_", [WITH_LENGTH, CHUNKED], ids=["length", "chunks"])
def test_a_client_that_ends_halfway_is_told_so_at_once(server, request_):
    with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
        connection.sendall(request_[:-9])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_what_follows_a_request_that_is_refused_is_never_taken_for_another(server):
    for sent, status in (
        (HEAD + b"Content-Length: 5000000\r\n\r\n" + WITH_LENGTH, "413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n0\r\n\r\n" + WITH_LENGTH, "400"),
        (HEAD + b"Content-Length: 9\r\n" + WITH_LENGTH[len(HEAD) :], "400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n" + WITH_LENGTH[len(HEAD) :], "400"),
        (HEAD + b"Transfer-Encoding: gzip\r\n" + WITH_LENGTH[len(HEAD) :], "400"),
        (HEAD + b"Transfer-Encoding: strange\r\n" + WITH_LENGTH[len(HEAD) :], "501"),
        (b"\x16\x03\x01\r\n\r\n" + WITH_LENGTH, "400"),
        (b"GET /" + b"x" * 70_000, "414"),
    ):
        assert answers(server, sent) == [status], sent[:200]


def test_whoever_sends_more_than_is_read_gets_the_answer_all_the_same(server):
    assert answers(server, HEAD + b"Content-Length: 9000000\r\n\r\n", b" " * 9_000_000) == ["413"]
    endless = b"10000\r\n" + b" " * 65536 + b"\r\n"
    assert answers(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", endless * 70) == ["413"]
    assert answers(server, b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200_000) == []  # but for a head that does not end


@pytest.mark.parametrize("size", [2**16 - len(HEAD), 2**16, 200_000, 2**21])
def test_large_bodies_are_taken_whole_and_in_chunks_and_larger_ones_are_answered(server, size):
    body = BODY.ljust(size)
    assert requests.post(server.url + URL, data=body, timeout=30).text == "OK"
    assert requests.post(server.url + URL, data=iter([body[:100], body[100:]]), timeout=30).text == "OK"


def test_a_body_over_2_mib_is_answered_even_in_chunks(server):
    for body in (b" " * (2**21 + 1), iter([b" " * 65536] * 33)):
        assert requests.post(server.url + URL, data=body, timeout=30).status_code == 413


def test_chunks_that_only_look_whole_hold_no_thread(server):
    start = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1f4\r\n{\r\n0\r\n\r\n"
    clients = [socket.create_connection(("127.0.0.1", server.port), 5) for _ in range(70)]
    for client in clients:
        client.sendall(start)
    for client in clients:
        with client:
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
    assert answers(server, CHUNKED.replace(b"localhost\r\n", b"localhost\r\nConnection: close\r\n")) == ["200"]


def cpu(server):
    """Seconds of CPU that the server's workers have taken."""
    stats = [Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split() for worker in server.workers()]
    return sum(int(stat[11]) + int(stat[12]) for stat in stats) / os.sysconf("SC_CLK_TCK")


def test_a_body_in_chunks_of_one_byte_costs_no_more_than_its_bytes(server):
    before, body = cpu(server), BODY.ljust(100_000)
    head = HEAD + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answers(server, head, b"".join(b"1\r\n%c\r\n" % byte for byte in body), b"0\r\n\r\n") == ["200"]
    assert cpu(server) - before < 5  # it is 0.3, and was 49


@pytest.fixture
def worker(monkeypatch, clock):
    """gunicorn's worker, whose event loop is turned by hand."""
    monkeypatch.setattr(gunicorn_worker, "time", SimpleNamespace(monotonic=clock))
    worker = gunicorn_worker.Worker(0, 0, [], None, 1, Config(), None)
    worker.poller = DefaultSelector()
    yield worker
    worker.poller.close()
    worker.tmp.close()


def test_a_request_that_comes_by_the_byte_is_dropped_in_the_end(worker, clock):
    client, sock = socket.socketpair()
    with client:
        worker.enqueue_req(TConn(worker.cfg, sock, None, None))
        for _ in range(10):
            client.send(b"x")
            clock.now += 1
            worker.wait_for_and_dispatch_events(0)
            worker.murder_pending()
        assert (sock.fileno() < 0, worker.held) == (False, 10)
        clock.now += 0.1
        worker.murder_pending()
        assert (sock.fileno() < 0, worker.held) == (True, 0)


@pytest.mark.parametrize(
    "start",
    [
        HEAD + b"Content-Length: 2000000\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1E8480\r\n",
        HEAD + b"Expect: 100-continue\r\nContent-Length: 2000000\r\n\r\n",
    ],
    ids=["length", "chunks", "expects"],
)
def test_large_requests_that_stop_halfway_hold_up_no_other(server, start):
    clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(70)]
    for client in clients:
        client.sendall(start + b"x" * 2 * PIECE)
    for body in (BODY, BODY.ljust(1_000_000)):
        assert requests.post(server.url + URL, data=body, timeout=5).text == "OK"
    for client in clients:
        client.close()


def test_a_large_body_is_taken_through_a_unix_socket(receiver, tmp_path):
    path = str(tmp_path / "receiver.sock")
    receiver("gunicorn", "--bind", "127.0.0.1:PORT", "--bind", f"unix:{path}", "app:app")
    with closing(socket.socket(socket.AF_UNIX)) as client:
        client.connect(path)
        client.sendall(HEAD + b"Content-Length: 2000000\r\n\r\n" + BODY.ljust(2_000_000))
        assert client.makefile().readline() == "HTTP/1.1 200 OK\n"
