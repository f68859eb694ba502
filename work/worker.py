"""The worker of a lane: it does what its handler has due, one job at first, more at a time while all goes well."""

import logging
import threading
import time
from typing import Any

from flask import Flask, g
from marshmallow import ValidationError

from handlers.errors import GiveUp, Unavailable
from stores import StoreError, get_store, jobs
from stores.records import Job, StoredUpdate
from work.lanes import PLACES, Attempt, Lane
from work.settling import settle

logger = logging.getLogger(__name__)


class Worker:
    """`done` and `left` count the jobs that it has done, and has tried and not done."""

    def __init__(self, app: Flask, lane: Lane):
        self.done = self.left = 0
        self._app, self._lane = app, lane
        self._width, self._successes = 1, 0
        self._running: dict[int, float] = {}  # since when, of time.monotonic(), by update
        self._changed = threading.Condition()
        self._stopping = False

    def run(self) -> None:
        """Do what is due as it comes due, until the worker is stopped."""
        while not self._stopping:
            self._lane.work.wait(self._app.config["RETRY_EVERY"])
            self._lane.work.clear()
            try:
                with self._app.app_context():
                    self.catch_up()
            except StoreError:
                pass  # whoever drains the spool tells of it
            except Exception:
                logger.exception("worker", extra={"handler": self._lane.name})

    def catch_up(self, due_by: float | None = None) -> bool:
        """Start what is due, or was at `due_by`, as places come free, until nothing is or the service is away. Returns
        whether anything was started."""
        store, seconds, started = get_store(), self._app.config["WORKER_LEASE"], False
        while places := self._free_places():
            now = store.now()
            limit = due_by or now
            leased = jobs.lease_due(store, self._lane.name, limit, now + seconds, places, self._lane.in_hand())
            for stored, job in leased:
                self._start(stored, job)
            if not leased:
                break
            started = True
        return started

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for what is in hand. Returns whether nothing is any more."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._running, seconds)

    def stop(self) -> None:
        """Start nothing more."""
        self._stopping = True
        self._lane.work.set()
        with self._changed:
            self._changed.notify_all()

    def _free_places(self) -> int:
        """How many jobs may be started now, waiting until one may: 0 at a stop, or while the service is away and it is
        not time to ask it."""
        with self._changed:
            while not self._stopping:
                asked_in = self._lane.asked_in()
                if asked_in is not None:
                    self._width, self._successes = 1, 0
                    return 0 if asked_in else 1
                if places := self._width - self._count_running():
                    return places
                self._changed.wait(1.0)
        return 0

    def _count_running(self) -> int:
        """How many jobs run, at most the width: one that goes on long after its service should have answered makes room
        for another as long as the lane has a place."""
        connect, read = self._app.config["WORKER_PATIENCE"]
        late: float = time.monotonic() - connect - read
        running = sum(started > late for started in self._running.values())
        return min(max(running, self._width - PLACES + len(self._running)), self._width)

    def _start(self, stored: StoredUpdate, job: Job) -> None:
        self._lane.take(stored.id)
        self._lane.note_asking()
        with self._changed:
            self._running[stored.id] = time.monotonic()
        threading.Thread(target=self._attempt, args=(stored, job), name=f"{self._lane.name} job", daemon=True).start()

    def _attempt(self, stored: StoredUpdate, job: Job) -> None:
        attempt = Attempt(self._lane, job, None)
        try:
            with self._app.app_context():
                g.patience = self._app.config["WORKER_PATIENCE"]
                attempt = self._call(stored, job)
                settle(stored.id, [attempt])
        finally:
            with self._changed:
                del self._running[stored.id]
                self._widen(attempt.error)
                self._changed.notify_all()

    def _call(self, stored: StoredUpdate, job: Job) -> Attempt:
        try:
            update = stored.load()
        except (ValidationError, ValueError) as error:
            logger.error("cannot be read any more", extra={"call_id": stored.call_id, "error": str(error)})
            return Attempt(self._lane, job, GiveUp(f"the kept message cannot be read: {error}"))
        attempt = self._lane.call(update, job)
        if not attempt.error:
            extra: dict[str, Any] = {"call_id": stored.call_id, "status": stored.status, "handler": self._lane.name}
            extra |= {"ms": round(1000 * attempt.seconds), "fields": {"attempts": job.attempts + 1}}
            logger.info("done later", extra=extra)
        return attempt

    def _widen(self, error: Exception | None) -> None:
        """Twice as many at a time once all of them have succeeded, half as many after the service's own failure."""
        self.done, self.left = (self.done, self.left + 1) if error else (self.done + 1, self.left)
        if isinstance(error, Unavailable):
            self._width, self._successes = max(self._width // 2, 1), 0
        elif error is None:
            self._successes += 1
            if self._successes >= self._width:
                self._width, self._successes = min(2 * self._width, PLACES), 0
