"""gunicorn's threaded worker, but for one thing: a thread is taken for a request only when all of it has come.

gunicorn's own reads requests in the threads that answer them, so that as many slow senders as there are threads stop
all others. Here the event loop, which has no more to do for a thousand connections than for ten, receives them.
"""

import re
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from errno import EMFILE, ENFILE
from functools import partial
from io import BytesIO
from selectors import EVENT_READ
from socket import SHUT_WR, socket

from gunicorn import http
from gunicorn.http.message import Request
from gunicorn.workers import gthread

from config import MAX_BODY

FIRST_BYTE = 5.0  # seconds that a new connection has for it
REQUEST = 10.0  # for all of a request, its head and its body
ANSWER = 10.0  # to take an answer, or a part of an answer that is sent in parts
KEPT = 60.0  # that a connection is used again, as one worker may get all that come at a start
LAST_BYTE = 2.0  # to close a connection that is closed here
MOST_AT_ONCE = 64 * 1024  # bytes read at a time, and of a head
MOST_HELD = 64 * MAX_BODY  # bytes, of all requests that have not come whole


class Connection(gthread.TConn):
    """A client's connection. `received` is what has come and belongs to no request yet that a thread has taken."""

    def __init__(self, *args):
        super().__init__(*args)
        self.parser = http.get_parser(self.cfg, iter(()), self.client)  # is given what was received, never the socket
        self.initialized = self.data_ready = True
        self.opened = time.monotonic()
        self.received = bytearray()

    def wholeness(self) -> Iterator[bool | None]:
        """To be asked each time more was received: None while the request goes on, then whether it will be read whole.

        It looks for a request's end only; whether it is one at all, gunicorn's parser says afterwards.
        """
        data, seen = self.received, 0
        while (end := data.find(b"\r\n\r\n", max(0, seen - 3))) < 0:
            if len(data) > MOST_AT_ONCE:
                yield False
            seen = len(data)
            yield None
        head = data[: end + 2].lower()
        if expects := re.search(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", head):
            with suppress(OSError):
                self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            del data[slice(*expects.span())], head[slice(*expects.span())]
        end = len(head) + 2
        length = re.search(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r\n", head)
        if b"\r\ntransfer-encoding:" in head:
            yield from self._chunks(end)
        elif length and int(length[1]) > MAX_BODY:
            yield False
        elif length:
            while len(data) < end + int(length[1]):
                yield None
        yield True

    def _chunks(self, start: int) -> Iterator[bool | None]:
        data, size = self.received, -1
        while size:
            while (end := data.find(b"\r\n", start)) < 0:
                yield False if len(data) > MAX_BODY + MOST_AT_ONCE else None
            if not (digits := re.match(rb"[0-9a-fA-F]{1,8}", data[start:end])):
                yield True  # for gunicorn's parser to refuse
            size, last, start = int(digits[0], 16), start, end + 2
            start += size + 2 if size else 0
        while data.find(b"\r\n\r\n", last) < 0:
            yield False if len(data) > MAX_BODY + MOST_AT_ONCE else None


class Worker(gthread.ThreadWorker):
    """Receives requests, and closes connections, in its event loop; threads do the rest."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_keepalived = self.worker_connections // 2
        self.waiting: dict[Connection, None] = {}  # for a client to send or to close, the longest first

    def accept(self, listener: socket) -> None:
        try:
            sock, client = listener.accept()
        except OSError as error:
            if error.errno in (EMFILE, ENFILE):
                self.drop_one()
            return
        self.nr_conns += 1
        self.begin(Connection(self.cfg, sock, client, listener.getsockname()), FIRST_BYTE)
        if self.nr_conns >= self.worker_connections:
            self.drop_one()

    def wait(self, conn: Connection, seconds: float, callback) -> None:
        conn.timeout = time.monotonic() + seconds
        self.waiting[conn] = None
        conn.sock.setblocking(False)
        self.poller.register(conn.sock, EVENT_READ, partial(callback, conn))

    def stop_waiting(self, conn: Connection) -> None:
        del self.waiting[conn]
        self.poller.unregister(conn.sock)

    def drop(self, conn: Connection) -> None:
        self.stop_waiting(conn)
        self.nr_conns -= 1
        conn.close()

    def drop_one(self) -> None:
        """Of too many, the one that has waited longest: a request that is worth an answer has come in no time."""
        if self.waiting:
            self.drop(next(iter(self.waiting)))

    def begin(self, conn: Connection, seconds: float = REQUEST) -> None:
        """Receive a request, of which some may be there."""
        conn.request, conn.rest = conn.wholeness(), REQUEST - seconds
        self.wait(conn, seconds, self.receive)
        self.receive(conn)

    def receive(self, conn: Connection, _: socket | None = None) -> None:
        if conn not in self.waiting:
            return  # was dropped since the poller told of it
        try:
            data = conn.sock.recv(MOST_AT_ONCE)
            if not data:
                return self.drop(conn)
        except BlockingIOError:
            data = b""
        except OSError:
            return self.drop(conn)
        if data and not conn.received:
            conn.timeout += conn.rest
        conn.received += data
        if (whole := next(conn.request)) is None:
            if len(conn.received) > MOST_AT_ONCE and sum(len(each.received) for each in self.waiting) > MOST_HELD:
                self.drop_one()
            return
        self.stop_waiting(conn)
        conn.parser.unreader.unread(bytes(conn.received))
        conn.received.clear()
        conn.whole = whole
        self.enqueue_req(conn)

    def on_client_socket_readable(self, conn: Connection, client: socket) -> None:
        """The next request on a connection that was kept."""
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self.begin(conn)

    def handle_request(self, req: Request, conn: Connection) -> bool:
        conn.sock.settimeout(ANSWER)
        if conn.whole:
            req.body = BytesIO(req.body.read())  # gunicorn answers 400 here where chunks are malformed
        if not conn.whole or time.monotonic() > conn.opened + KEPT:
            req.force_close()
        return super().handle_request(req, conn)

    def finish_request(self, conn: Connection, future: Future) -> None:
        """In the event loop again, when a thread is done with a request."""
        if future.cancelled() or future.exception() or not future.result():
            return self.close_gracefully(conn)
        conn.received += conn.parser.unreader.take_buffered()
        if conn.received:
            self.begin(conn)
        else:
            super().finish_request(conn, future)

    def close_gracefully(self, conn: Connection) -> None:
        """Let the client take the answer and close first: what it still sends would destroy the answer."""
        try:
            conn.sock.shutdown(SHUT_WR)
        except OSError:
            self.nr_conns -= 1
            conn.close()
        else:
            self.wait(conn, LAST_BYTE, self.discard)

    def discard(self, conn: Connection, client: socket) -> None:
        if conn not in self.waiting:
            return
        try:
            data = client.recv(MOST_AT_ONCE)
        except OSError:
            data = b""
        if not data:
            self.drop(conn)

    def murder_pending(self) -> None:
        """Once a turn of the event loop."""
        now = time.monotonic()
        for conn in [each for each in self.waiting if each.timeout < now]:
            self.drop(conn)
