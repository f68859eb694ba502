"""What tests need of the loopback network, and waiting for what another process does."""

import socket
import threading
import time
from contextlib import closing, suppress
from random import SystemRandom


def free_port():
    """A port that nothing uses, of those that no other socket is given by itself before a server starts there."""
    while True:
        with closing(socket.socket()) as listener, suppress(OSError):
            listener.bind(("127.0.0.1", SystemRandom().randrange(10_000, 30_000)))
            return listener.getsockname()[1]


def wait_until(condition, seconds=60, log=None):
    """Poll for something another process does; the value that came true. In vain, that process's `log` is shown."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, log.read_text() if log else "waited in vain"
        time.sleep(0.02)
    return value


class Address:
    """An address that stays the same while the server behind it changes, as a provider's does at a failover.

    A new connection goes to the port that `target` names at that moment and stays with that server until either side
    ends it. With `target` None a new connection is closed at once."""

    def __init__(self, target=None):
        self.target = target
        self.port = free_port()
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.ends = set()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target or 0), timeout=5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            self.ends |= {client, server}
            for source, sink in ((client, server), (server, client)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Take no more connections and end those that are open."""
        for end in (self.listener, *self.ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()
