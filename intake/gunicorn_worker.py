"""gunicorn's threaded worker, but that a request takes a thread only once all of it has arrived.

gunicorn's own receives a request in the thread that answers it, and waits in its event loop for each client that does
not close, up to two seconds: a few slow clients stop all others. Here the event loop receives what arrives, and the
parser reads that in place of the socket, so that no thread waits for a client to send.

It can go once gunicorn does both: https://github.com/benoitc/gunicorn/pull/3635 (open) lets the event loop wait for the
first bytes of a request; that it waits for clients to close came with pull request 3590, of which no report was found.

Of gunicorn's insides it overrides the methods below and uses the worker's `poller`, `pending_conns`, `nr_conns`,
`worker_connections` and `alive`, and a connection's `sock`, `client`, `timeout`, `data_ready` and `parser`.
"""

import re
import time
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ
from socket import SHUT_WR

from gunicorn.http import get_parser
from gunicorn.http.errors import NoMoreData
from gunicorn.workers.gthread import ThreadWorker

from config import MAX_BODY

PATIENCE = 10.0  # seconds for all of a request to arrive, for a client to take each part of an answer, and to close
STOPPING = 2.0  # seconds at a stop for a request to arrive, and for a client to close
PIECE = 32 * 1024  # bytes that are received at once, and the longest head
ENOUGH = 2 * MAX_BODY  # bytes of a request that can only be refused
MOST_HELD = 32 * MAX_BODY  # bytes of all requests together
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,7})[ \t]*\r\n")
CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n")
LAST_CHUNK = re.compile(rb"\r\n0+[ \t]*(?:;[^\r\n:]*)?\r\n(?:[^\r\n:;]+:[^\r\n]*\r\n)*\r\n")
EXPECT = re.compile(rb"\r\n(?i:expect:[ \t]*100-continue)[ \t]*(?=\r\n)")


class Received(bytearray):
    """What has arrived of a request; the parser reads it as it would a socket."""

    def recv(self, size):
        if not self:
            raise NoMoreData()
        data = bytes(self[:size])
        del self[:size]
        return data


def is_whole(data: bytes | bytearray) -> bool:
    """Whether all of the request that starts with `data` is there, or enough of one that can only be refused.

    Where this is mistaken, the parser finds too little, and the request is refused as one that stopped halfway.
    """
    start = data.find(b"\r\n\r\n") + 4
    if start < 4:
        return len(data) > PIECE
    head = data[: start - 2].lower()
    if length := LENGTH.search(head):
        size = int(length[1])
        return size > ENOUGH or len(data) >= start + size
    if CHUNKED.search(head):
        # In the last piece and the one before, as trailers or a request that is sent ahead may follow, but not in all.
        last = LAST_CHUNK.search(data, max(start - 2, len(data) - 2 * PIECE))
        return last is not None or len(data) > ENOUGH
    return True


def receive(sock) -> bytes | None:
    """What has arrived, PIECE bytes at most: None where nothing has, and empty at the end of the connection."""
    try:
        return sock.recv(PIECE)
    except BlockingIOError:
        return None
    except OSError:
        return b""


class Worker(ThreadWorker):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.held = 0  # bytes of requests that are not answered yet

    def enqueue_req(self, conn):
        """A request begins on `conn`: wait for all of it."""
        if not conn.parser:
            conn.received = Received()
            conn.parser = get_parser(self.cfg, conn.received, conn.client)
        conn.held = 0
        self.wait(conn, self.take)
        self.take(conn, conn.sock)

    def wait(self, conn, callback):
        conn.sock.setblocking(False)
        conn.timeout = time.monotonic() + PATIENCE
        self.pending_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(callback, conn))

    def leave(self, conn):
        self.pending_conns.remove(conn)
        self.poller.unregister(conn.sock)

    def drop(self, conn):
        self.leave(conn)
        self.held -= conn.held
        self.nr_conns -= 1
        conn.close()

    def take(self, conn, client):
        """Take what has arrived on `conn`, and let a thread have the request once it is whole or its client ends."""
        data = receive(client)
        if data is None:
            return
        conn.received += data
        conn.held += len(data)
        self.held += len(data)
        if not conn.received:
            self.drop(conn)
        elif not data or is_whole(conn.received):
            self.leave(conn)
            conn.data_ready = True
            super().enqueue_req(conn)
        elif header := EXPECT.search(conn.received, 0, PIECE):  # the client waits for a word before it sends its body
            del conn.received[header.start() : header.end()]  # else it would be told again
            with suppress(OSError):
                client.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def handle_request(self, req, conn):
        """In a thread: answer a request, and wait for no client that does not take the answer."""
        conn.sock.settimeout(PATIENCE)
        return super().handle_request(req, conn)

    def finish_request(self, conn, future):
        """Keep `conn` for its next request, unless that was sent ahead. Else close it after its client has: what that
        still sends would destroy the answer."""
        self.held -= conn.held
        conn.held = 0
        sent_ahead = conn.received or conn.parser.unreader.buf.getvalue()
        if not future.exception() and future.result() and not sent_ahead:
            super().finish_request(conn, future)
            return
        conn.received.clear()
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
        """Drop connections whose time is over, and the oldest where there are too many. The event loop calls this."""
        now = time.monotonic()
        latest = now if self.alive else now + PATIENCE - STOPPING
        while self.pending_conns and (
            self.pending_conns[0].timeout < latest
            or self.nr_conns >= self.worker_connections  # so that another can come
            or self.held > MOST_HELD
        ):
            self.drop(self.pending_conns[0])
