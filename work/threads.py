"""A process's threads: a worker for each lane, one that writes what handlers did, and those that keep it well."""

import atexit
import logging
import threading
import time
from collections.abc import Callable
from functools import partial

from flask import Flask

from schemas.settings import announce
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
        if not app.testing and "stop_retrying" not in app.extensions:
            announce(app.config)
            atexit.register(start_retrying(app))


def start_retrying(app: Flask) -> Callable[[], None]:
    """Start this process's threads, unless they run already. Returns what ends them: that starts nothing more, waits
    for what is in hand and then for what is to be written, and logs what stays pending."""
    with _starting:
        if "stop_retrying" not in app.extensions:
            app.extensions["stop_retrying"] = _start(app)
    stop: Callable[[], None] = app.extensions["stop_retrying"]
    return stop


def _start(app: Flask) -> Callable[[], None]:
    stopping = threading.Event()
    settler = settling.start(app)
    with app.app_context():
        workers = {lane.name: Worker(app, lane) for lane in get_lanes()}
    often, seldom = app.config["RETRY_EVERY"], app.config["UPKEEP_EVERY"]
    duties: dict[str, tuple[float, Callable[[], None]]] = {
        "spool": (often, partial(_drain, stopping)),
        "upkeep": (seldom, partial(upkeep, stopping)),
        "reports": (seldom, report_troubles),
    }
    threads = [threading.Thread(target=worker.run, name=f"work-{name}") for name, worker in workers.items()]
    threads += [
        threading.Thread(target=_repeat, args=(app, stopping, *duty), name=name) for name, duty in duties.items()
    ]
    for thread in threads:
        thread.daemon = True
        thread.start()

    def stop() -> None:
        if stopping.is_set():
            return
        stopping.set()
        started = time.monotonic()
        end = started + app.config["STOP_WORK"]
        for worker in workers.values():
            worker.stop()
        for worker in workers.values():
            worker.wait(max(end - time.monotonic(), 0))
        for thread in threads:
            thread.join(max(end - time.monotonic(), 0))
        settler.stop(app.config["STOP_WRITES"])
        with app.app_context():
            if app.config["EPHEMERAL_DISK"]:
                spool.drain_at_stop(get_store(), started + app.config["STOP"])
            _log_pending()

    return stop


def _repeat(app: Flask, stopping: threading.Event, every: float, duty: Callable[[], None]) -> None:
    """Do `duty` every so many seconds, soon for the first time, until `stopping`."""
    pause, logged = app.config["RETRY_EVERY"], ""
    while not stopping.wait(pause):
        pause = every
        try:
            with app.app_context():
                duty()
            logged = ""
        except StoreError as error:
            if str(error) != logged:
                logger.error("work waits for the store", extra={"error": str(error)})
            logged = str(error)
        except Exception:
            logger.exception("background thread", extra={"fields": {"thread": threading.current_thread().name}})


def _drain(stopping: threading.Event) -> None:
    """Drain the spool, and write down what was refused."""
    spool.drain(get_store(), stopping)
    get_refusals().flush(get_store(), get_store().now())


def _log_pending() -> None:
    try:
        pending = {backlog.handler: backlog.pending for backlog in jobs.backlog(get_store()) if backlog.pending}
    except StoreError as error:
        logger.error("stopped while the store was away", extra={"error": str(error)})
        return
    if pending:
        logger.warning("stopped with work pending", extra={"fields": pending})
