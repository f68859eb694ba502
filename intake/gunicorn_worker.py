"""gunicorn's threaded worker, but that a request takes a thread only once all of it has arrived.

gunicorn's own receives a request in the thread that answers it, and waits in its event loop for each client that does
not close, up to two seconds: a few slow clients stop all others. Here the kernel holds what has arrived, and the event
loop looks at it (MSG_PEEK) when enough is there (SO_RCVLOWAT).

It can go once gunicorn does both: https://github.com/benoitc/gunicorn/pull/3635 (open) lets the event loop wait for the
first bytes of a request; that it waits for clients to close came with pull request 3590, of which no report was found.

Of gunicorn's insides it overrides the methods below and uses the worker's `poller`, `pending_conns`, `nr_conns`,
`worker_connections` and `alive`, and a connection's `sock`, `timeout`, `data_ready` and `parser.unreader.buf`.
"""

import math
import re
import time
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ
from socket import MSG_PEEK, SHUT_RD, SHUT_WR, SO_RCVLOWAT, SOL_SOCKET

from gunicorn.workers.gthread import ThreadWorker

from config import MAX_BODY

PATIENCE = 10.0  # seconds for all of a request to arrive, for a client to take each part of an answer, and to close
STOPPING = 2.0  # the same for what has begun at a stop
LOOK = 64 * 1024  # bytes looked at at once, and the longest head; what has more is a large request
LOOKS = 10  # at one request at once, and then as many a second
LARGE_AT_ONCE = 8  # large requests that hold a thread, half of them while they arrive
MOST_CHUNKS = 100  # followed at each look; a request with more needs a thread, too
MOST_WAITING = 32 * MAX_BODY  # bytes that the kernel is asked to hold
FRAMING = re.compile(rb"\r\n(transfer-encoding|content-length|expect):[ \t]*([^\r\n]*?)[ \t]*(?=\r\n)")
CHUNK = re.compile(rb"([0-9a-fA-F]{1,6})(?:[ \t]*;[^\r\n]*)?\r\n")


def measure(data: bytes) -> int | None:
    """The size of the request that starts with `data`, or a size above len(data) that it has at least.

    None where that cannot be told, or where it is too large: only a thread can receive or refuse such a request.
    """
    end = data.find(b"\r\n\r\n") + 4
    if end < 4:
        return len(data) + 1 if len(data) < LOOK else None
    match FRAMING.findall(data[: end - 2].lower()):
        case []:
            return end
        case [(b"transfer-encoding", b"chunked")]:
            return measure_chunks(data, end)
        case [(b"content-length", length)] if re.fullmatch(rb"[0-9]{1,7}", length) and int(length) <= MAX_BODY:
            return end + int(length)
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


class Worker(ThreadWorker):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.large = set()  # connections whose large request has a thread

    def enqueue_req(self, conn):
        """A request begins on `conn`: wait for all of it, `conn.size` bytes at least."""
        conn.timeout, conn.size, conn.looks = time.monotonic() + PATIENCE, 1, 0
        self.pending_conns.append(conn)
        self.watch(conn)
        self.look(conn)

    def watch(self, conn):
        conn.rests_until = math.inf
        self.poller.register(conn.sock, EVENT_READ, partial(self.look, conn))

    def rest(self, conn):
        conn.rests_until = time.monotonic() + 1 / LOOKS
        self.poller.unregister(conn.sock)

    def drop(self, conn):
        self.pending_conns.remove(conn)
        with suppress(KeyError):  # it rests
            self.poller.unregister(conn.sock)
        self.nr_conns -= 1
        conn.close()

    def look(self, conn, _=None):
        """Let a thread have the request on `conn` once it has arrived, or cannot without one."""
        try:
            data = conn.sock.recv(max(conn.size, LOOK), MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        size = measure(data)
        if not data:
            self.drop(conn)
        elif size is None or (len(data) < size == conn.size and len(data) >= LOOK):  # the kernel cannot hold all of it
            self.hand_over(conn, LARGE_AT_ONCE // 2)
        elif size > len(data):
            self.ask_for(conn, size)
        else:
            self.hand_over(conn, LARGE_AT_ONCE if size > LOOK else None)

    def ask_for(self, conn, size):
        """Look again when `size` bytes are there, for which the kernel makes room; but not too often."""
        conn.size, conn.looks = size, conn.looks + 1
        if conn.looks > LOOKS:
            self.rest(conn)
        with suppress(OSError):
            conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, size)
            conn.sock.recv(1, MSG_PEEK)  # so that the kernel tells the client of the room

    def hand_over(self, conn, places):
        """Let a thread have `conn`, where it has a large request only while fewer than `places` are taken."""
        if places and len(self.large) >= places:
            self.rest(conn)
            return
        if places:
            self.large.add(conn)
        conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 1)
        self.pending_conns.remove(conn)
        self.poller.unregister(conn.sock)
        conn.data_ready = True
        super().enqueue_req(conn)

    def handle(self, conn):
        """In a thread: answer a request, and before `conn` is closed take what is still sent, for a large one until
        the client has closed: unread, that would destroy the answer. Whether `conn` is kept."""
        keep = super().handle(conn) and not conn.parser.unreader.buf.getvalue()  # else the next one was sent ahead
        with suppress(OSError):
            if not keep:
                conn.sock.shutdown(SHUT_WR)
                conn.sock.setblocking(conn in self.large)
                while conn.sock.recv(LOOK) and conn in self.large:
                    pass
        return keep

    def handle_request(self, req, conn):
        conn.sock.settimeout(PATIENCE)
        return super().handle_request(req, conn)

    def finish_request(self, conn, future):
        self.large.discard(conn)
        if not future.exception() and future.result():
            super().finish_request(conn, future)
        else:
            self.nr_conns -= 1
            conn.close()

    def murder_pending(self):
        """Drop whom nobody waits for any longer, and watch again who has rested; once a turn of the event loop."""
        now = time.monotonic()
        latest = now if self.alive else now + PATIENCE - STOPPING
        for conn in [*self.large]:
            if conn.timeout < latest:
                with suppress(OSError):
                    conn.sock.shutdown(SHUT_RD)  # its thread waits for no more of it
        while self.pending_conns and (
            self.pending_conns[0].timeout < latest
            or self.nr_conns >= self.worker_connections  # so that another can come
            or sum(conn.size for conn in self.pending_conns) > MOST_WAITING
        ):
            self.drop(self.pending_conns[0])
        for conn in self.pending_conns:
            if conn.rests_until < now:
                self.watch(conn)
