"""A CRM that costs little: `python -m bench.crm PORT DELAY`, which is in seconds before each answer, or `never`.

`GET /` reports how many requests it was posted, how many updates it has answered, and the seconds from the first of
these answers to the last that was no repeat.
"""

import asyncio
import re
import sys
import time

import uvloop

DELAY = sys.argv[2]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"
posts, keys, first, last = 0, set(), 0.0, 0.0


class Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport, self.received = transport, b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, found, body = self.received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if found and len(body) >= int(length[1] if length else 0):
            self.received = b""
            self.answer(head)

    def answer(self, head: bytes) -> None:
        global posts
        if head.startswith(b"GET"):
            text = b"%d %d %.3f" % (posts, len(keys), last - first)
            self.transport.write(OK % (len(text), text))
            return
        posts += 1
        if DELAY != "never":
            key = re.search(rb"(?i)\r\nidempotency-key: (\S+)", head)[1]
            if float(DELAY):
                asyncio.get_running_loop().call_later(float(DELAY), self.take, key)
            else:
                self.take(key)

    def take(self, key: bytes) -> None:
        global first, last
        if key not in keys:
            last = time.monotonic()
            first = first or last
            keys.add(key)
        self.transport.write(OK % (2, b"ok"))


async def serve() -> None:
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]), backlog=1000)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
