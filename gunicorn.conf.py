"""gunicorn's settings, each with its reason. WEB_CONCURRENCY sets the number of workers, PORT the port."""

import os
import resource

from gunicorn import glogging

import logs
from config import announce, check_free, load_config
from intake.gunicorn_worker import Worker

# Answers wait for the disk and for other services, so threads, not more processes, keep a worker busy. They are made
# when needed, and wait for no client.
worker_class = Worker
threads = 64

# Each connection has a file descriptor, and so have the threads' databases: half of what many systems give is too few.
files, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
files = max(files, min(most_files, 4096) if most_files != resource.RLIM_INFINITY else 4096)
resource.setrlimit(resource.RLIMIT_NOFILE, (files, most_files))
worker_connections = min(1000, files // 2)

# Routers of platforms keep idle connections for about a minute: closed here first, a request could get lost.
keepalive = 75

# Platforms kill 30 s after SIGTERM.
graceful_timeout = 25

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


# Where these are set, a socket that listens already is handed over: by systemd, or by the gunicorn that this replaces.
HANDED_OVER = {"LISTEN_FDS", "GUNICORN_FD"}


def on_starting(server):
    """Refuse nonsense settings and a port in use in one line, or say what is on and off: once, before any worker."""
    config = load_config()
    if HANDED_OVER.isdisjoint(os.environ):
        for address in server.address:
            if not isinstance(address, int):  # fd://
                check_free(address)
    named = [":".join(map(str, each)) if isinstance(each, tuple) else str(each) for each in server.address]
    announce(config, address=named)


def post_worker_init(worker):
    from work.threads import start_retrying

    worker.stop_retrying = start_retrying(worker.wsgi)


def worker_exit(server, worker):
    """In the worker itself, after its last answer. A daemon thread would die between a request and its record."""
    if hasattr(worker, "stop_retrying"):
        worker.stop_retrying()
