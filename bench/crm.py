"""A CRM that costs little: `python -m bench.crm PORT DELAY`, in seconds before each answer; `inf` is never.

`GET /` reports how many updates it has answered, how often one was posted again, and when the first and the last that
was none of these were answered. asyncio turns Nagle's algorithm off by itself.
"""

import asyncio
import json
import re
import sys
import time
from contextlib import suppress

DELAY = float(sys.argv[2])
ANSWER = "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{}"
posted: set[bytes] = set()
answered: dict[bytes, float] = {}  # when, in the order of time
again = 0


async def serve_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            await reader.readexactly(int(length[1]) if length else 0)
            text = report() if head.startswith(b"GET") else await take(head, reader)
            writer.write(ANSWER.format(len(text), text).encode())
    writer.close()


async def take(head: bytes, reader: asyncio.StreamReader) -> str:
    """Count an update, unless its sender does not wait for the answer; what is for Slack has no key."""
    global again
    if key := re.search(rb"(?i)\r\nidempotency-key: *(\S+)", head):
        again += key[1] in posted
        posted.add(key[1])
        if DELAY:
            await asyncio.sleep(DELAY)
        if not reader.at_eof():
            answered.setdefault(key[1], time.monotonic())
    return "ok"


def report() -> str:
    times = list(answered.values()) or [0.0]
    return json.dumps({"updates": len(answered), "again": again, "first": times[0], "last": times[-1]})


async def main() -> None:
    server = await asyncio.start_server(serve_client, "127.0.0.1", int(sys.argv[1]), backlog=1000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
