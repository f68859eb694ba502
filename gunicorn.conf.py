"""gunicorn's settings, each with its reason. WEB_CONCURRENCY sets the number of workers, PORT the port."""

import os
import socket
import struct

from gunicorn import glogging
from gunicorn.workers import gthread

import config as app_config
import logs


class Worker(gthread.ThreadWorker):
    """Closes in the request's own thread: waiting for a client to close its end, 2 s each, stopped all others."""

    def handle(self, conn):
        keep = super().handle(conn)
        if not keep:
            conn.close(graceful=True)
            conn.close = lambda graceful=False: None
        return keep


# Answers wait for the disk and for other services, so threads, not more processes, keep a worker busy. They are made
# when needed; there are many because a client that stops in the middle of a request holds one until it is cut off.
worker_class = Worker
threads = 4 * app_config.LIMITS["OUTBOUND_SLOTS"]
SLOW_CLIENT = 5  # seconds without a byte

# Routers of platforms keep idle connections for about a minute: closed here first, a request could get lost.
keepalive = 75

# Platforms kill 30 s after SIGTERM.
graceful_timeout = 25

# Each worker has a listening socket of its own: one shared by all lets one worker collect the kept-alive connections.
reuse_port = True

# The heartbeat's file in memory, where a slow disk cannot make a worker look dead.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# Nothing here uses it.
control_socket_disable = True


class Logger(glogging.Logger):
    """gunicorn's own lines go where the app's go."""

    def setup(self, cfg):
        super().setup(cfg)
        logs.configure_logging()
        self.error_log.handlers.clear()
        self.error_log.propagate = True


logger_class = Logger


def on_starting(server):
    """Refuse nonsense settings in one line, or say what is on and off: once, before any worker does."""
    app_config.announce(app_config.load(), address=[":".join(map(str, address)) for address in server.address])


def post_fork(server, worker):
    """Cut off clients that stop in the middle of a request: connections inherit their listening socket's time-out."""
    for listener in worker.sockets:
        listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SLOW_CLIENT, 0))


def post_worker_init(worker):
    from retries import start_retrying

    worker.stop_retrying = start_retrying(worker.wsgi)


def worker_exit(server, worker):
    """In the worker itself, after its last answer. A daemon thread would die between a request and its record."""
    if hasattr(worker, "stop_retrying"):
        worker.stop_retrying()
