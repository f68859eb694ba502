"""What anybody can send, without a secret, to a receiver as it runs in production: none of it silences it."""

import json
import resource
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count, takewhile
from pathlib import Path

import pytest
import requests

from tests.conftest import SECRET, URL, message, signed, wait_until

HEAD = f"POST {URL} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n".encode()
CHUNKED = HEAD.replace(b"Content-Length: 500", b"Transfer-Encoding: chunked")
SLOW = (b"", HEAD, HEAD + b"\r\n{", CHUNKED + b"\r\n1f4\r\n{")
CLOSED = 30.0  # seconds until a socket here gives up waiting for an end that is due far sooner


@pytest.fixture
def server(receiver):
    return receiver(WEBHOOK_SECRET=SECRET, WEB_CONCURRENCY="2")


@pytest.fixture
def connect(server):
    """Open a connection to the receiver; all are closed with the test."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened = []

    def connection(data=b""):
        opened.append(socket.create_connection(("127.0.0.1", server.port), CLOSED))
        opened[-1].sendall(data)
        return opened[-1]

    yield connection
    for each in opened:
        each.close()


def post(server, call_id, client=requests):
    body = json.dumps(message(call_id=call_id)).encode()
    return client.post(server.url + URL, data=body, headers=signed(body, timestamp=int(time.time())), timeout=10)


@contextmanager
def meanwhile(work, times=1):
    """Call work(number, end) in a thread for each number, and set `end` after the block; the list has what they
    return."""
    end, found = threading.Event(), []
    with ThreadPoolExecutor(times) as pool:
        running = [pool.submit(work, number, end) for number in range(times)]
        try:
            yield found
        finally:
            end.set()
    found += [each.result() for each in running]


def test_2000_clients_that_send_nothing_or_a_byte_now_and_then_hold_up_no_update(server, connect):
    silent = [connect() for _ in range(1000)]
    slow = [connect(SLOW[number % len(SLOW)]) for number in range(1000)]

    def dribble(_, end):
        while not end.wait(0.5):
            for each in slow:
                with suppress(OSError):  # it was closed by the receiver
                    each.send(b" ")

    with meanwhile(dribble):
        for number in range(20):
            assert post(server, f"call-{number}").text == "OK"
        for each in [*silent, *slow]:  # each is closed, however much it still sends
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""


def test_2000_clients_that_do_not_close_what_is_answered_hold_up_no_update(server, connect):
    for _ in range(2000):
        connect(b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert post(server, "call-1").text == "OK"


def test_reloading_under_load_breaks_no_request(server):
    def load(name, end):
        numbers = takewhile(lambda _: not end.is_set(), count())
        return {post(server, f"{name}-{number}").text for number in numbers}

    with meanwhile(load, times=8) as answers:
        for _ in range(4):
            before = set(server.workers())
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda old=before: len(server.workers()) == 2 and old.isdisjoint(server.workers()))
    assert answers == [{"OK"}] * 8


def test_kept_connections_are_spread_over_the_workers(server):
    kept = [requests.Session() for _ in range(24)]
    wait_until(lambda: all(len(list(Path(f"/proc/{worker}/task").iterdir())) > 1 for worker in server.workers()))

    def load(name):
        return {post(server, f"{name}-{number}", kept[name]).text for number in range(5)}

    with ThreadPoolExecutor(len(kept)) as pool:
        assert list(pool.map(load, range(len(kept)))) == [{"OK"}] * len(kept)
    files = [Path(f"/proc/{worker}/fd").iterdir() for worker in server.workers()]
    sockets = [sum("socket" in str(file.readlink()) for file in each) for each in files]
    assert min(sockets) > 3, sockets
