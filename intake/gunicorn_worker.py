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
MOST_CHUNKS = 100  # followed at each look; a request with more needs a thread, too
CHUNK = re.compile(rb"([0-9a-fA-F]{1,6})(?:[ \t]*;[^\r\n]*)?\r\n")
MOST_WAITING = 32 * MAX_BODY  # bytes that the kernel is asked to hold; who asks for most goes first


def measure(data: bytes) -> int | None:
    """The size of the request that starts with `data`, or a size above len(data) that it has at least.

    None where that cannot be told, or where it is too large: only a thread can receive or refuse such a request.
    """
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return len(data) + 1 if len(data) < LOOK else None
    head = data[: end - 2].lower()
    names = re.findall(rb"\r\n(transfer-encoding|content-length|expect):", head)
    if not names:
        return end
    if names == [b"transfer-encoding"] and re.search(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", head):
        return measure_chunks(data, end)
    length = re.search(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", head)
    if names == [b"content-length"] and length and int(length[1]) <= MAX_BODY:
        return end + int(length[1])
    return None


def measure_chunks(data: bytes, start: int) -> int | None:
    """The same where the first of its chunks is at `start`."""
    for _ in range(MOST_CHUNKS):
        if start >= len(data):
            least = start + len(b"0\r\n\r\n")
            return least if least <= LOOK else None
        line = CHUNK.match(data, start)
        if not line:
            return None
        if not int(line[1], 16):
            end = data.find(b"\r\n\r\n", line.end() - 2) + 4
            return end if end >= 4 else len(data) + 1
        start = line.end() + int(line[1], 16) + 2
    return None


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
        conn.looks = 0
        self.wait(conn, self.look)
        self.look(conn)

    def wait(self, conn, callback):
        conn.sock.setblocking(False)
        conn.timeout, conn.asked = time.monotonic() + PATIENCE, 1
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
        data = receive(conn.sock, MSG_PEEK)
        if data == b"":
            self.drop(conn)
        elif data:
            size, arrived = measure(data), available(conn.sock)
            if size is not None and size <= arrived:
                self.hand_over(conn, LARGE_AT_ONCE if size > LOOK else None)
            elif size is None or (size == conn.asked and len(data) == LOOK):  # the kernel cannot hold all of it
                self.hand_over(conn, LARGE_AT_ONCE // 2)
            else:
                self.ask_for(conn, size)

    def ask_for(self, conn, size):
        """Look again when `size` bytes are there, for which the kernel makes room; but not too often."""
        conn.looks += 1
        if conn.looks > LOOKS:
            self.rest(conn)
        conn.asked = size
        conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, size)
        receive(conn.sock, MSG_PEEK)  # so that the kernel tells the client of the room

    def rest(self, conn):
        self.poller.unregister(conn.sock)
        self.resting.append((time.monotonic() + 1 / LOOKS, conn))

    def hand_over(self, conn, places=None):
        """Let a thread have `conn`, where it has a large request only while fewer than `places` are taken."""
        if places and len(self.large) >= places:
            self.rest(conn)
            return
        if places:
            self.large.add(conn)
        conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 1)
        self.leave(conn)
        conn.data_ready = True
        super().enqueue_req(conn)

    def handle_request(self, req, conn):
        conn.sock.settimeout(PATIENCE)
        return super().handle_request(req, conn)

    def finish_request(self, conn, future):
        self.large.discard(conn)
        if future.exception() or not future.result() or conn.parser.unreader.buf.getvalue():  # it sent ahead
            self.linger(conn)
        else:
            super().finish_request(conn, future)

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
        if receive(client) == b"":
            self.drop(conn)

    def murder_pending(self):
        """Drop whom nobody waits for any longer, and watch again who has rested; once a turn of the event loop."""
        now = time.monotonic()
        latest = now if self.alive else now + PATIENCE - STOPPING
        while self.pending_conns and self.pending_conns[0].timeout < latest:
            self.drop(self.pending_conns[0])
        if self.pending_conns and self.nr_conns >= self.worker_connections:
            self.drop(self.pending_conns[0])  # the one that has waited longest, so that another can come
        while sum(conn.asked for conn in self.pending_conns) > MOST_WAITING:
            self.drop(max(self.pending_conns, key=lambda conn: conn.asked))
        for conn in self.large:
            if conn.timeout < latest:
                with suppress(OSError):
                    conn.sock.shutdown(SHUT_RD)  # its thread waits for no more of it
        while self.resting and self.resting[0][0] < now:
            _, conn = self.resting.popleft()
            if conn.sock.fileno() >= 0:
                self.poller.register(conn.sock, EVENT_READ, partial(self.look, conn))
