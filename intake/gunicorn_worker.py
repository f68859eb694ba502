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
import struct
import time
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ
from socket import MSG_PEEK, SHUT_RD, SHUT_WR, SO_RCVLOWAT, SO_RCVTIMEO, SO_SNDTIMEO, SOL_SOCKET

from gunicorn.workers.gthread import ThreadWorker

from config import MAX_BODY

PATIENCE = 10  # seconds for all of a request to arrive, and for a client to take each part of an answer
STOPPING = 2  # the same for what has begun to arrive before a stop
LOOK = 64 * 1024  # bytes looked at at once, and the longest head; what has more is a large request
LOOKS = 10  # at one request at once, and then as many a second
LARGE_AT_ONCE = 8  # large requests that hold a thread, half of them while they arrive
MOST_WAITING = 32 * MAX_BODY  # bytes that the kernel is asked to hold
FRAMING = re.compile(rb"\r\n(transfer-encoding|content-length|expect):([^\r\n]*)")
LAST_CHUNK = re.compile(rb"\r\n0+[ \t]*(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n")
TAIL = 1024  # bytes at the end, in which the last chunk is looked for


def measure(data: bytes) -> int | None:
    """The size of the request that starts with `data`, or a size above len(data) that it has at least.

    None where that cannot be told, or where it is too large: only a thread can receive or refuse such a request. Chunks
    are not followed: a request that only looks whole holds no thread, as what looks so is read without waiting.
    """
    head, end, _ = data.partition(b"\r\n\r\n")
    start = len(head + end)
    if end:
        match [(name, value.strip()) for name, value in FRAMING.findall(head.lower())]:
            case []:
                return start
            case [(b"content-length", length)] if re.fullmatch(rb"[0-9]{1,7}", length) and int(length) <= MAX_BODY:
                return start + int(length)
            case [(b"transfer-encoding", b"chunked")]:
                if last := LAST_CHUNK.search(data, max(start - 2, len(data) - TAIL)):
                    return last.end()
            case _:
                return None
    return len(data) + 1 if len(data) < LOOK else None


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
        elif size is not None and size <= len(data):
            self.hand_over(conn, LARGE_AT_ONCE if size > LOOK else None, 0)
        elif size is None or size == conn.size:  # the kernel cannot hold all of it, or no more of it comes
            self.hand_over(conn, LARGE_AT_ONCE // 2, PATIENCE)
        else:
            self.ask_for(conn, size)

    def ask_for(self, conn, size):
        """Look again when `size` bytes are there, for which the kernel makes room; but not too often."""
        conn.size, conn.looks = size, conn.looks + 1
        if conn.looks > LOOKS:
            self.rest(conn)
        with suppress(OSError):
            conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, size)
            conn.sock.recv(1, MSG_PEEK)  # so that the kernel tells the client of the room

    def hand_over(self, conn, places, seconds):
        """Let a thread have `conn`, where it has a large request only while fewer than `places` are taken. The thread
        waits `seconds` for what has not arrived."""
        if places and len(self.large) >= places:
            self.rest(conn)
            return
        if places:
            self.large.add(conn)
        self.pending_conns.remove(conn)
        self.poller.unregister(conn.sock)
        conn.sock.setsockopt(SOL_SOCKET, SO_RCVLOWAT, 1)
        conn.sock.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack("ll", seconds, 1))
        conn.sock.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("ll", PATIENCE, 0))
        conn.data_ready = True
        super().enqueue_req(conn)

    def handle(self, conn):
        """In a thread: answer a request. Whether `conn` is kept; if not, what a client still sends after a large one is
        taken until it closes, as what is left unread would destroy the answer."""
        keep = super().handle(conn) and not conn.parser.unreader.buf.getvalue()  # else the next one was sent ahead
        with suppress(OSError):
            if not keep:
                conn.sock.shutdown(SHUT_WR)
                while conn.sock.recv(LOOK) and conn in self.large:
                    pass
        return keep

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
        for conn in self.large:
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
