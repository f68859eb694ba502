"""A process's threads: a worker for each lane, one that writes what handlers did, and those that keep it well."""

import atexit
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from threading import Event, Lock, Thread

from flask import Flask

from stores import StoreError, get_refusals, get_store, jobs, spool
from work import settling
from work.lanes import get_lanes
from work.reports import report_troubles
from work.upkeep import upkeep
from work.worker import work

logger = logging.getLogger(__name__)

_starting = Lock()  # the first two requests may come at once


def init_app(app: Flask) -> None:
    @app.before_request
    def start() -> None:
        """Start the threads on the first request: commands also build the app and must not start them. gunicorn.conf.py
        starts and stops them itself."""
        if not app.testing and "threads" not in app.extensions:
            atexit.register(start_retrying(app))


def start_retrying(app: Flask) -> Callable[[], None]:
    """Start this process's threads, unless they run already. Returns what ends them."""
    with _starting, app.app_context():
        if "threads" not in app.extensions:
            app.extensions["threads"] = Threads(app)
    threads: Threads = app.extensions["threads"]
    return threads.stop


class Threads:
    """All of them end at the stop but the one that settles, which goes on as long as the process does."""

    def __init__(self, app: Flask):
        self._app, self._stopping, self._lanes = app, Event(), get_lanes()
        self._errors: dict[str, str] = {}  # of the store, by the thread that waits for it
        settling.open_queue(app)
        self._start("settle", 0, settling.write_next, Event())
        stopping, often, seldom = self._stopping, app.config["RETRY_EVERY"], app.config["UPKEEP_EVERY"]
        self._threads = [
            *(self._start(f"work-{lane.name}", 0, partial(work, app, lane), stopping) for lane in self._lanes),
            self._start("spool", often, self._drain, stopping),
            self._start("upkeep", seldom, partial(upkeep, stopping), stopping),
            self._start("reports", seldom, report_troubles, stopping),
        ]

    def stop(self) -> None:
        """Start nothing more, and wait until what is in hand is done and written, and a spool whose disk is thrown away
        is drained; log what is left."""
        self._stopping.set()
        for lane in self._lanes:
            lane.work.set()
        end, is_thrown_away = time.monotonic() + self._app.config["STOP"], self._app.config["EPHEMERAL_DISK"]
        with self._app.app_context():
            store = get_store()
            while (self._is_busy() or (is_thrown_away and spool.waiting(store))) and time.monotonic() < end:
                with suppress(StoreError):  # a server that is away is tried again, as no thread does so any more
                    spool.drain(store, lambda: time.monotonic() >= end)
                time.sleep(0.02)
            if is_thrown_away and (number := spool.waiting(store)):
                logger.error("stopped with updates in the spool", extra={"fields": {"spooled": number}})
            with suppress(StoreError):  # the log has it
                if pending := {backlog.handler: backlog.pending for backlog in jobs.backlog(store) if backlog.pending}:
                    logger.warning("stopped with work pending", extra={"fields": pending})

    def _is_busy(self) -> bool:
        return any(thread.is_alive() for thread in self._threads) or any(lane.in_hand for lane in self._lanes)

    def _start(self, name: str, every: float, duty: Callable[[], object], stopping: Event) -> Thread:
        thread = Thread(target=self._repeat, args=(name, every, duty, stopping), name=name, daemon=True)
        thread.start()
        return thread

    def _repeat(self, name: str, every: float, duty: Callable[[], object], stopping: Event) -> None:
        """Do `duty` every so many seconds, soon at first and after an error, until `stopping`."""
        soon = self._app.config["RETRY_EVERY"]
        pause = min(every, soon)
        while not stopping.wait(pause):
            pause = soon
            try:
                with self._app.app_context():
                    duty()
                self._errors[name], pause = "", every
            except StoreError as error:
                if str(error) not in self._errors.values():
                    logger.error("work waits for the store", extra={"error": str(error)})
                self._errors[name] = str(error)
            except Exception:
                logger.exception("background thread", extra={"fields": {"thread": name}})

    def _drain(self) -> None:
        """Drain the spool, and write down what was refused."""
        spool.drain(get_store(), self._stopping.is_set)
        get_refusals().flush(get_store(), get_store().now())
