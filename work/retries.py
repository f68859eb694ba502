"""A process's threads: one for each handler does what is pending, with others to help while there is much to do; one
writes what requests have done; the rest keep the receiver well."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from queue import SimpleQueue

from flask import Flask, current_app

from config import announce
from handlers import HANDLERS
from stores import StoreError, get_refusals, get_store, jobs, spool
from stores.records import Settlement
from work.dispatch import Handler, retry_one, settle
from work.reports import report_troubles
from work.upkeep import upkeep

logger = logging.getLogger(__name__)


def init_app(app: Flask) -> None:
    @app.before_request
    def start() -> None:
        """Start the threads on the first request: commands also build the app and must not start them. gunicorn.conf.py
        starts them itself."""
        if not app.testing and "stop_retrying" not in app.extensions:
            announce(app.config)
            start_retrying(app)


def start_retrying(app: Flask) -> Callable[[], None]:
    """Start this process's threads, unless they run already.

    Returns what ends them: that finishes what is in hand, tries due work a last time and logs what stays pending.
    """
    stopping = threading.Event()
    settlements: SimpleQueue[Settlement | None] = SimpleQueue()
    settling = threading.Thread(target=_settle, args=(app, settlements), name="settle", daemon=True)
    often, seldom = app.config["RETRY_EVERY"], app.config["UPKEEP_EVERY"]
    duties = {f"retry-{handler.__name__}": (often, partial(_retry, handler, stopping)) for handler in HANDLERS} | {
        "spool": (often, partial(_drain, stopping)),
        "upkeep": (seldom, partial(upkeep, stopping)),
        "troubles": (seldom, report_troubles),
    }
    threads = [
        threading.Thread(target=_repeat, args=(app, stopping, *duty), name=name, daemon=True)
        for name, duty in duties.items()
    ]

    def stop() -> None:
        stopping.set()
        for thread in threads:
            thread.join()
        app.extensions.pop("settlements", None)
        settlements.put(None)
        settling.join()
        with app.app_context():
            _last_try(app)

    if app.extensions.setdefault("stop_retrying", stop) is stop:
        for thread in (settling, *threads):
            thread.start()
        app.extensions["settlements"] = settlements
    return app.extensions["stop_retrying"]


def _settle(app: Flask, settlements: "SimpleQueue[Settlement | None]") -> None:
    """Write what became of jobs in requests, all that has come meanwhile at once, until there is a None.

    Nobody waits for it: 10 % less CPU an update on SQLite, 18 % on PostgreSQL. What is lost with the process is done
    again, as if it had been killed a moment earlier.
    """
    settlement = settlements.get()
    while settlement:
        found = [settlement, *(settlements.get() for _ in range(settlements.qsize()))]
        try:
            with app.app_context():
                settle(*filter(None, found))
        except Exception:
            logger.exception("settling thread")
        settlement = None if None in found else settlements.get()


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
                logger.error("retries wait for the store", extra={"error": str(error)})
            logged = str(error)
        except Exception:
            logger.exception("background thread", extra={"fields": {"thread": threading.current_thread().name}})


def _drain(stopping: threading.Event) -> None:
    """Drain the spool, and write down what was refused."""
    spool.drain(get_store(), stopping)
    get_refusals().flush(get_store(), get_store().now())


def _retry(handler: Handler, stopping: threading.Event) -> None:
    """Do what `handler` has due."""
    with suppress(StoreError):  # the other threads log it
        for _ in catch_up(current_app._get_current_object(), handler, get_store().now(), stopping):
            pass


def catch_up(
    app: Flask, handler: Handler, due_by: float, stopping: threading.Event | None = None, *, forced: bool = False
) -> Iterator[bool]:
    """Call `handler` for each of its jobs due at `due_by`; yields for each whether it is done.

    One job at a time at first, which is tried even if the handler is paused where that is `forced`. Each success allows
    twice as many at a time, up to RETRIES_AT_ONCE, and each failure half as many.
    """

    def retry(forced: bool = False) -> bool | None:
        with app.app_context():
            return retry_one(handler, due_by, forced=forced)

    if (done := retry(forced)) is None:
        return
    limit, more, running = 1, True, set[Future[bool | None]]()
    with ThreadPoolExecutor(app.config["RETRIES_AT_ONCE"]) as pool:
        while True:
            if done is None:
                more = False
            else:
                yield done
                limit = min(2 * limit, app.config["RETRIES_AT_ONCE"]) if done else max(limit // 2, 1)
            while more and len(running) < limit and not (stopping and stopping.is_set()):
                running.add(pool.submit(retry))
            if not running:
                return
            finished = next(iter(wait(running, return_when=FIRST_COMPLETED).done))
            running.remove(finished)
            done = finished.result()


def _last_try(app: Flask) -> None:
    """Try what is due a last time, for LAST_TRY seconds at most."""
    store, end = get_store(), time.monotonic() + app.config["LAST_TRY"] - app.config["OUTBOUND_TIMEOUT"]
    due_by = store.now()

    def work(handler: Handler) -> None:
        for _ in catch_up(app, handler, due_by, forced=True):
            if time.monotonic() >= end:
                return

    try:
        with ThreadPoolExecutor(len(HANDLERS)) as pool:
            list(pool.map(work, HANDLERS))
        pending = {each.handler: each.pending for each in jobs.backlog(store) if each.pending}
        if pending:
            logger.warning("stopped with work pending", extra={"fields": pending})
    except StoreError as error:
        logger.error("stopped without a last try", extra={"error": str(error)})
