"""gunicorn's settings, each with its reason. WEB_CONCURRENCY sets the number of workers, PORT the port."""

from gunicorn import glogging

import config as app_config

# Answers wait for the disk and for other services, so threads, not more processes, keep a worker busy. They are made
# when needed; there are many because a client that stops in the middle of a request holds one until it is cut off.
worker_class = "gthread"
threads = 64

# Routers of platforms keep idle connections for about a minute: closed here first, a request could get lost.
keepalive = 75

# Platforms kill 30 s after SIGTERM.
graceful_timeout = 25

# Each worker has a listening socket of its own: one shared by all lets one worker collect the kept-alive connections.
reuse_port = True

# The heartbeat's file in memory, where a slow disk cannot make a worker look dead.
worker_tmp_dir = "/dev/shm"

# Nothing here uses it.
control_socket_disable = True


class Logger(glogging.Logger):
    """gunicorn's own lines go where the app's go."""

    def setup(self, cfg):
        super().setup(cfg)
        app_config.configure_logging()
        self.error_log.handlers.clear()
        self.error_log.propagate = True


logger_class = Logger


def on_starting(server):
    """Refuse nonsense settings once, in one line, before any worker does."""
    app_config.load()
