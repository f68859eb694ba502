"""Posts signed updates that never repeat, and takes the time of each answer."""

import re
import socket
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from typing import NamedTuple

from bench.processes import SECRET
from intake.signature import sign

CONNECTIONS, MOST_CONNECTIONS = 16, 300
BLOCK = 50  # calls that begin before the first of them ends, so that no two updates of a call are under way at once
LONGEST = 30.0  # seconds to wait for an answer
HEAD = (
    "POST /webhooks/status-update HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "X-Webhook-Event: status-update\r\nX-Webhook-Timestamp: %d\r\nX-Webhook-Signature: %s\r\n"
    "Content-Length: %d\r\n\r\n"
)
BODY = (
    '{"message":{"type":"status-update","timestamp":"%s","call":{"id":"%s","type":"inbound_phone_call","status":"%s"},'
    '"phone_number":{"number":"+31850835037","name":"HMS Sovereign Demo"},"customer":{"number":"+316%08d"}%s}}'
)


class Answer(NamedTuple):
    """`sent` is in time.monotonic(), which all processes of a machine share. Status 0: there was no answer."""

    sent: float
    seconds: float
    status: int


def post(port: int, updates: int, rate: float = 0, failing: int = 10) -> list[Answer]:
    """Post so many updates, `rate` of them a second whatever is answered; at 0 each connection posts its next when its
    last is answered. One call in `failing` ends with an error. Returns the answers in the order of the updates."""
    requests = list(islice(signed_updates(failing), updates))
    idle = [_connect(port)]

    def answer(request: bytes) -> Answer:
        try:
            connection = idle.pop()
        except IndexError:
            connection = _connect(port)
        sent = time.monotonic()
        status = _exchange(connection, request)
        if status:
            idle.append(connection)
        else:
            connection.close()
        return Answer(sent, time.monotonic() - sent, status)

    with ThreadPoolExecutor(MOST_CONNECTIONS if rate else CONNECTIONS) as pool:
        started, futures = time.monotonic(), []
        for number, request in enumerate(requests):
            if rate:
                time.sleep(max(0, started + number / rate - time.monotonic()))
            futures.append(pool.submit(answer, request))
    for connection in idle:
        connection.close()
    return [future.result() for future in futures]


def signed_updates(failing: int) -> Iterator[bytes]:
    """Whole requests, signed now, without end."""
    for first in count(step=BLOCK):
        calls = [(number, uuid.uuid4()) for number in range(first, first + BLOCK)]
        for number, call in calls:
            yield _request(number, call, "in-progress")
        for number, call in calls:
            error = ("ended-with-error", ',"error":"STT connection failed"')
            yield _request(number, call, *(error if number % failing == 0 else ("ended",)))


def _request(number: int, call: uuid.UUID, status: str, error: str = "") -> bytes:
    now = int(time.time())
    moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(now))
    body = (BODY % (moment, call, status, number, error)).encode()
    return (HEAD % (now, sign(SECRET, now, body), len(body))).encode() + body


def _connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), LONGEST)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _exchange(connection: socket.socket, request: bytes) -> int:
    """The status of the answer to `request`, of which all has come."""
    data = b""
    try:
        connection.sendall(request)
        while received := connection.recv(65536):
            data += received
            head, end, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if end and length and len(body) >= int(length[1]):
                return int(head[9:12])
    except OSError:
        pass
    return 0
