"""gunicorn's threaded worker, but that a request takes a thread only once all of it has arrived.

gunicorn's own receives a request in the thread that answers it, and waits in its event loop for each client that does
not close, up to two seconds: a few slow clients stop all others. Here the kernel holds what has arrived, and the event
loop looks at it (MSG_PEEK) when enough is there (SO_RCVLOWAT).

It can go once gunicorn does both: https://github.com/benoitc/gunicorn/pull/3635 (open) lets the event loop wait for the
first bytes of a request; that it waits for clients to close came with pull request 3590, of which no report was found.

Of gunicorn's insides it overrides the methods below and uses the worker's `poller`, `pending_conns`, `nr_conns`,
`worker_connections` and `alive`, and a connection's `sock`, `timeout`, `data_ready` and `parser.unreader.buf`.
"""

import re
import sys
import time
from collections import deque
from contextlib import suppress
from fcntl import ioctl
from functools import partial
from io import BytesIO
from operator import attrgetter
from selectors import EVENT_READ
from socket import MSG_DONTWAIT, MSG_PEEK, SHUT_RD, SHUT_WR, SO_RCVLOWAT, SOL_SOCKET
from termios import FIONREAD

from gunicorn.workers.gthread import ThreadWorker

from config import MAX_BODY

PATIENCE = 10.0  # seconds for all of a request to arrive, and for a client to take its answer and to close
STOPPING = 2.0  # the same at a stop
LOOK = 64 * 1024  # bytes looked at at once, and the longest head; what has more is a large request
LOOKS = 10  # at one request at once, and then as many a second
LARGE_AT_ONCE = 8  # large requests that hold a thread, half of them while they arrive
MOST_WAITING = 32 * MAX_BODY  # bytes that the kernel is asked to hold; who asks for most goes first
UNKNOWN, ENDLESS = 1 << 61, 1 << 62  # sizes of a request that is received in a thread, and of one that is refused
REFUSAL = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def measure(data: bytes, chunk: int = 0) -> tuple[int, int]:
    """The size of the request that starts with `data`, or a size above len(data) that it has at least.

    Also where its last known chunk starts, to be passed with more of the same request. What is malformed counts as
    whole: gunicorn's parser refuses it.
    """
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return (len(data) + 1 if len(data) < LOOK else ENDLESS), 0
    head = data[: end - 2].lower()
    if b"\r\ntransfer-encoding:" in head:
        chunked = re.search(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", head)
        is_plain = chunked and b"\r\ncontent-length:" not in head
        return measure_chunks(data, chunk or end) if is_plain else (UNKNOWN, 0)
    length = re.search(rb"\r\ncontent-length:[ \t]*([0-9]+)[ \t]*\r\n", head)
    size = end + int(length[1].lstrip(b"0")[:18] or 0) if length else end
    if size > end + MAX_BODY or (size > len(data) and b"\r\nexpect:" in head):
        return UNKNOWN, 0
    return size, 0


def measure_chunks(data: bytes, chunk: int) -> tuple[int, int]:
    while (end := data.find(b"\r\n", chunk)) >= 0:
        if not (digits := re.match(rb"[0-9a-fA-F]*", data[chunk:end])[0]):
            return len(data), chunk
        if not (size := int(digits, 16)):
            last = data.find(b"\r\n\r\n", end) + 4
            return (last if last >= 4 else len(data) + 1 if len(data) < LOOK else ENDLESS), chunk
        chunk = end + 2 + size + 2
    least = max(chunk + len(b"0\r\n\r\n"), len(data) + 1)
    return (least if least <= LOOK else UNKNOWN), chunk


def receive(sock, flags: int = 0) -> bytes | None:
    """What has arrived, LOOK bytes at most: None where nothing has, and empty at the end of the connection."""
    try:
        return sock.recv(LOOK, flags | MSG_DONTWAIT)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def available(sock) -> int:
    """How many bytes have arrived."""
    return int.from_bytes(ioctl(sock, FIONREAD, bytes(4)), sys.byteorder)


class Worker(ThreadWorker):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.large = set()  # connections whose large request has a thread
        self.resting = deque()  # when a connection is to be watched again, and the connection

    def enqueue_req(self, conn):
        """A request begins on `conn`: wait for all of it."""
        if self.nr_conns >= self.worker_connections and self.pending_conns:
            self.drop(self.pending_conns[0])  # the one that has waited longest
        conn.asked, conn.chunk, conn.looks = 1, 0, 0
        self.wait(conn, self.look)
        self.look(conn)

    def wait(self, conn, callback):
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + PATIENCE
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(callback, conn))

    def leave(self, conn):
        self.pending_conns.remove(conn)
        with suppress(KeyError):  # it rests
            self.poller.unregister(conn.sock)

    def drop(self, conn):
        self.leave(conn)
        self.nr_conns -= 1
        conn.close()

    def look(self, conn, _=None):
        """Let a thread have the request on `conn` once it has arrived, or cannot without one."""
        if conn.sock.fileno() < 0:
            return  # dropped since the poller told of it
        ahead = conn.parser.unreader.buf.getvalue() if conn.parser else b""
        peeked = receive(conn.sock, MSG_PEEK)
        data = ahead + (peeked or b"")
        size, conn.chunk = measure(data, conn.chunk)
        there = len(data) if len(data) < LOOK else len(ahead) + available(conn.sock)
        if size <= there:
            self.hand_over(conn, LARGE_AT_ONCE if size > LOOK else None)
        elif peeked == b"":
            self.drop(conn)
        elif size == ENDLESS:
            self.refuse(conn)
        elif size == UNKNOWN or (size == conn.asked and len(data) >= LOOK):  # the kernel cannot hold all of it
            self.hand_over(conn, LARGE_AT_ONCE // 2)
        else:
            self.ask_for(conn, size, len(ahead))

    def ask_for(self, conn, size, ahead):
        """Look again when `size` bytes are there, for which the kernel makes room; but not too often."""
        conn.looks += 1
        if conn.looks > LOOKS:
            self.rest(conn)
        if size != conn.asked:
            conn.asked = size
            conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, size - ahead)
            receive(conn.sock, MSG_PEEK)  # so that the kernel tells the client of the room
            if size > LOOK and sum(pending.asked for pending in self.pending_conns) > MOST_WAITING:
                self.drop(max(self.pending_conns, key=attrgetter("asked")))

    def rest(self, conn):
        self.poller.unregister(conn.sock)
        self.resting.append((time.monotonic() + 1 / LOOKS, conn))

    def hand_over(self, conn, places):
        """Let a thread have `conn`, where it has a large request only while fewer than `places` are taken."""
        if places and len(self.large) >= places:
            return self.rest(conn)
        if places:
            self.large.add(conn)
        if conn.asked > 1:
            conn.asked = 1
            conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 1)
        self.leave(conn)
        conn.data_ready = True
        super().enqueue_req(conn)

    def handle_request(self, req, conn):
        if any(name == "TRANSFER-ENCODING" for name, _ in req.headers):
            req.body = BytesIO(req.body.read(MAX_BODY + 1))  # raises here, where gunicorn answers 400, not in the app
        conn.sock.settimeout(PATIENCE)
        if conn in self.large:
            req.force_close()  # gunicorn would wait for what the app has not read of it
        return super().handle_request(req, conn)

    def finish_request(self, conn, future):
        self.large.discard(conn)
        if future.cancelled() or future.exception() or not future.result():
            self.linger(conn)
        else:
            super().finish_request(conn, future)

    def refuse(self, conn):
        self.leave(conn)
        with suppress(OSError):
            conn.sock.send(REFUSAL)
        self.linger(conn)

    def linger(self, conn):
        """Close `conn` after its client has: what that still sends would destroy the answer."""
        try:
            conn.sock.shutdown(SHUT_WR)
        except OSError:
            self.nr_conns -= 1
            conn.close()
        else:
            self.wait(conn, self.discard)

    def discard(self, conn, client):
        if client.fileno() >= 0 and receive(client) == b"":
            self.drop(conn)

    def murder_pending(self):
        """Drop whom nobody waits for any longer, and watch again who has rested; once a turn of the event loop."""
        now = time.monotonic()
        latest = now if self.alive else now + PATIENCE - STOPPING
        while self.pending_conns and self.pending_conns[0].timeout < latest:
            self.drop(self.pending_conns[0])
        for conn in self.large:
            if conn.timeout < latest:
                with suppress(OSError):
                    conn.sock.shutdown(SHUT_RD)  # its thread waits for no more of it
        while self.resting and self.resting[0][0] < now:
            _, conn = self.resting.popleft()
            if conn.sock.fileno() >= 0:
                self.poller.register(conn.sock, EVENT_READ, partial(self.look, conn))
