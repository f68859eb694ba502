"""gunicorn's settings, each with its reason. WEB_CONCURRENCY sets the number of workers, PORT the port."""

import os
from typing import Any

from gunicorn.arbiter import Arbiter

import logs
from intake.gunicorn_worker import Worker
from schemas.settings import announce, load_config

# Answers wait for the disk and for services, so threads, not more processes, keep a worker busy: 16 places in each of
# three lanes, and 16 for the rest. They are made when needed, and wait for no client.
worker_class = Worker
threads = 64

# Many systems allow a process 1,024 files: half for clients, half for what its threads open, databases and services.
worker_connections = 512

# Routers of platforms keep idle connections for about a minute: closed here first, a request could get lost.
keepalive = 75

# Platforms kill 30 s after SIGTERM.
graceful_timeout = 25

# The heartbeat's file in memory, where a slow disk cannot make a worker look dead.
worker_tmp_dir = "/dev/shm" if os.path.isdir("/dev/shm") else None

# Nothing here uses it.
control_socket_disable = True


# gunicorn's own lines go where the app's go: to the root's handler, which an empty `root` leaves as it is.
logs.configure_logging()
logconfig_dict = {"root": {}, "handlers": {}, "loggers": {"gunicorn.error": {"propagate": True}}}


def on_starting(server: Arbiter) -> None:
    """Refuse nonsense settings in one line, or say what is on and off: once, before any worker."""
    config = load_config()
    if server.cfg.is_ssl:
        raise SystemExit("gunicorn cannot speak TLS here: unset certfile and keyfile, and put a proxy in front.")
    announce(config)


def post_worker_init(worker: Any) -> None:
    from work.threads import start_threads

    worker.stop_threads = start_threads(worker.wsgi)


def worker_exit(server: Arbiter, worker: Any) -> None:
    """In the worker itself, after its last answer. A daemon thread would die between a request and its record."""
    if hasattr(worker, "stop_threads"):
        worker.stop_threads()
