"""A process's threads: a worker for each lane, one that writes what handlers did, and those that keep it well."""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from flask import Flask

from stores import StoreError, get_refusals, get_store, jobs, spool
from work import settling
from work.lanes import get_lanes
from work.reports import report_troubles
from work.upkeep import upkeep
from work.worker import Worker

logger = logging.getLogger(__name__)

_starting = threading.Lock()  # the first two requests may come at once


def init_app(app: Flask) -> None:
    @app.before_request
    def start() -> None:
        """Start the threads on the first request: commands also build the app and must not start them. gunicorn.conf.py
        starts and stops them itself."""
        if not app.testing and "threads" not in app.extensions:
            atexit.register(start_retrying(app))


def start_retrying(app: Flask) -> Callable[[], None]:
    """Start this process's threads, unless they run already. Returns what ends them."""
    with _starting:
        if "threads" not in app.extensions:
            app.extensions["threads"] = Threads(app)
    threads: Threads = app.extensions["threads"]
    return threads.stop


class Threads:
    def __init__(self, app: Flask):
        self._app, self._stopping = app, threading.Event()
        self._settler = settling.start(app)
        with app.app_context():
            self._workers = {lane.name: Worker(app, lane) for lane in get_lanes()}
        often, seldom = app.config["RETRY_EVERY"], app.config["UPKEEP_EVERY"]
        targets = {f"work-{name}": worker.run for name, worker in self._workers.items()} | {
            "spool": partial(self._repeat, often, self._drain),
            "upkeep": partial(self._repeat, seldom, partial(upkeep, self._stopping)),
            "reports": partial(self._repeat, seldom, report_troubles),
        }
        self._threads = [threading.Thread(target=run, name=name, daemon=True) for name, run in targets.items()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Start nothing more, wait for what is in hand and then for what is to be written, drain a spool whose disk is
        thrown away, and log what stays pending."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        config, started = self._app.config, time.monotonic()
        for worker in self._workers.values():
            worker.stop()
        for wait in (*(worker.wait for worker in self._workers.values()), *(thread.join for thread in self._threads)):
            wait(max(started + config["STOP_WORK"] - time.monotonic(), 0))
        self._settler.stop(config["STOP_WRITES"])
        with self._app.app_context():
            if config["EPHEMERAL_DISK"]:
                spool.drain_at_stop(get_store(), started + config["STOP"])
            _log_pending()

    def _repeat(self, every: float, duty: Callable[[], None]) -> None:
        """Do `duty` every so many seconds, soon for the first time, until the stop."""
        pause, logged = self._app.config["RETRY_EVERY"], ""
        while not self._stopping.wait(pause):
            pause = every
            try:
                with self._app.app_context():
                    duty()
                logged = ""
            except StoreError as error:
                if str(error) != logged:
                    logger.error("work waits for the store", extra={"error": str(error)})
                logged = str(error)
            except Exception:
                logger.exception("background thread", extra={"fields": {"thread": threading.current_thread().name}})

    def _drain(self) -> None:
        """Drain the spool, and write down what was refused."""
        spool.drain(get_store(), self._stopping.is_set)
        get_refusals().flush(get_store(), get_store().now())


def _log_pending() -> None:
    try:
        pending = {backlog.handler: backlog.pending for backlog in jobs.backlog(get_store()) if backlog.pending}
    except StoreError as error:
        logger.error("stopped while the store was away", extra={"error": str(error)})
        return
    if pending:
        logger.warning("stopped with work pending", extra={"fields": pending})
