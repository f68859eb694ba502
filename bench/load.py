"""Posts signed updates that never repeat, and checks every answer: a process of its own, cheap enough not to matter.

`python -m bench.load closed PORT SECONDS CONNECTIONS WARMUP`: each connection posts its next update when the last is
answered. `python -m bench.load count PORT UPDATES CONNECTIONS`: the same for so many updates.
`python -m bench.load open PORT SECONDS RATE`: updates are posted when they are due, whatever was answered, and the time
of an answer counts from then. Reads a line before it starts measuring; prints one JSON object.
"""

import hashlib
import hmac
import json
import select
import socket
import sys
import time
import uuid
from collections import deque
from collections.abc import Callable

from bench.processes import SECRET

HEAD = (
    "POST /webhooks/status-update HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    "X-Webhook-Event: status-update\r\nX-Webhook-Timestamp: %d\r\nX-Webhook-Signature: sha256=%s\r\n"
    "Content-Length: %d\r\n\r\n"
)
BODY = (
    '{"message":{"type":"status-update","timestamp":"%s","call":{"id":"%s","type":"inbound_phone_call","status":"%s"},'
    '"phone_number":{"number":"+31850835037","name":"HMS Sovereign Demo"},"customer":{"number":"+316%08d"}%s}}'
)
LAST_ANSWER = 15.0  # seconds to wait for the answers to what was sent last


def requests(call: int) -> list[bytes]:
    """A call's two updates, signed now; one call in ten ends with an error."""
    id, second, made = uuid.uuid4(), f"2025-12-13T12:{call // 60 % 60:02}:{call % 60:02}.000Z", []
    last = ("ended-with-error", ',"error":"STT connection failed"') if call % 10 == 0 else ("ended", "")
    for status, rest in (("in-progress", ""), last):
        body = (BODY % (second, id, status, call % 10**8, rest)).encode()
        now = int(time.time())
        signature = hmac.new(SECRET.encode(), b"%d." % now + body, hashlib.sha256).hexdigest()
        made.append((HEAD % (now, signature, len(body))).encode() + body)
    return made


class Connection:
    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.queue: deque[bytes] = deque()
        self.received = b""

    def send(self, request: bytes, since: float) -> None:
        self.since, self.received = since, b""
        self.socket.sendall(request)

    def answered(self) -> str | None:
        """What came of the request, `OK` where it is right; None while there is more to come."""
        data = self.socket.recv(65536)
        self.received += data
        if self.received.startswith(b"HTTP/1.1 200") and self.received.endswith(b"\r\n\r\nOK"):
            return "OK"
        head, found, body = self.received.partition(b"\r\n\r\n")
        length = int(head.lower().rpartition(b"content-length:")[2].split(b"\r")[0]) if found else 0
        if data and (not found or len(body) < length):
            return None
        return self.received[:12].decode()[9:] or "connection closed"


class Load:
    """Requests that are under way, and what came of the others. `strict`: ends where one is not acknowledged."""

    def __init__(self, port: int, *, strict: bool = False):
        self.port, self.strict, self.calls, self.sent = port, strict, 0, 0
        self.idle: list[Connection] = []
        self.poll, self.busy = select.epoll(), {}
        self.results: list[tuple[float, float, str]] = []  # sent at, seconds, what came of it

    def send(self, connection: Connection, request: bytes, since: float) -> None:
        connection.send(request, since)
        self.sent += 1
        self.busy[connection.socket.fileno()] = connection

    def receive(self, timeout: float) -> list[Connection]:
        """The connections that have answered."""
        done = []
        for number, _ in self.poll.poll(timeout):
            if number not in self.busy:
                continue
            connection = self.busy[number]
            try:
                result = connection.answered()
            except ConnectionError as error:
                result = type(error).__name__
            if result is None:
                continue
            if self.strict and result != "OK":
                sys.exit(f"not acknowledged: {result} {connection.received[-200:]}")
            del self.busy[number]
            self.results.append((connection.since, time.perf_counter() - connection.since, result))
            if result == "OK" or result.isdigit():
                done.append(connection)
            else:
                self.poll.unregister(number)
                connection.socket.close()
        return done

    def connect(self) -> Connection:
        connection = Connection(self.port)
        self.poll.register(connection.socket, select.EPOLLIN)
        return connection

    def call(self) -> list[bytes]:
        self.calls += 1
        return requests(self.calls)

    def connect_idle(self, connections: int) -> None:
        for _ in range(connections):
            time.sleep(0.002)  # lets the workers of servers with one socket for all share the connections out
            self.idle.append(self.connect())

    def run(self, ready: deque[list[bytes]], go_on: Callable[[], bool]) -> None:
        """Keep all connections busy while `go_on`, with the calls that are `ready` and then with new ones."""
        while go_on() or self.busy:
            while self.idle and go_on():
                connection = self.idle.pop()
                if not connection.queue:
                    connection.queue.extend(ready.popleft() if ready else self.call())
                self.send(connection, connection.queue.popleft(), time.perf_counter())
            self.idle.extend(self.receive(1))


def closed(port: int, seconds: float, connections: int, warmup: int) -> dict[str, float]:
    load = Load(port, strict=True)
    load.connect_idle(connections)
    ready = deque(load.call() for _ in range(warmup + int(1500 * seconds)))
    load.run(ready, lambda: load.sent < warmup)
    load.results.clear()
    go()
    started, cpu = time.perf_counter(), time.process_time()
    load.run(ready, lambda: time.perf_counter() - started < seconds)
    took = time.perf_counter() - started
    share = (time.process_time() - cpu) / took
    times = sorted(each for _, each, _ in load.results)
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    return {"updates": len(times), "seconds": took, "p50": p50, "p99": p99, "cpu_share": share}


def counted(port: int, updates: float, connections: int) -> dict[str, float]:
    load = Load(port, strict=True)
    load.connect_idle(connections)
    go()
    started = time.perf_counter()
    load.run(deque(), lambda: load.sent < updates)
    return {"updates": len(load.results), "seconds": time.perf_counter() - started}


def open_loop(port: int, seconds: float, rate: float) -> dict[str, list]:
    load = Load(port)
    idle, queue = [], deque(each for _ in range(int(seconds * rate / 2)) for each in load.call())
    go()
    started, sent, expected = time.perf_counter(), 0, len(queue)
    while len(load.results) < expected and time.perf_counter() - started < seconds + LAST_ANSWER:
        due = started + sent / rate
        if queue and time.perf_counter() >= due:
            sent += 1
            request = queue.popleft()
            try:
                load.send(idle.pop() if idle else load.connect(), request, due)
            except ConnectionError as error:
                load.results.append((due, time.perf_counter() - due, type(error).__name__))
            continue
        idle += load.receive(max(0, due - time.perf_counter()) if queue else 0.5)
    load.results += [(each.since, LAST_ANSWER, "no answer") for each in load.busy.values()]
    return {"results": [(since - started, *rest) for since, *rest in load.results]}


def go() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    mode, port, much, *rest = sys.argv[1:]
    modes = {"closed": closed, "count": counted, "open": open_loop}
    print(json.dumps(modes[mode](int(port), float(much), *map(int, rest))))
