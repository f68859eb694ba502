"""The worker of a lane: it does what its handler has due, one job at first, more at a time while all goes well."""

import logging
import threading

from flask import Flask, g
from marshmallow import ValidationError

from handlers.errors import GiveUp, Unavailable
from stores import get_store, jobs
from stores.records import Job, StoredUpdate
from work.lanes import PLACES, Attempt, Lane
from work.settling import settle

logger = logging.getLogger(__name__)


class Worker:
    """`done` and `left` count the jobs that it has done, and has tried and not done. It starts none once `stopping`."""

    def __init__(self, app: Flask, lane: Lane, stopping: threading.Event | None = None):
        self.done = self.left = 0
        self._app, self._lane, self._stopping = app, lane, stopping or threading.Event()
        self._width, self._running = 1, 0
        self._changed = threading.Condition()

    def work(self) -> None:
        """Wait until something may be due, and do what is. Raises StoreError."""
        self._lane.work.wait(self._app.config["RETRY_EVERY"])
        self._lane.work.clear()
        self.catch_up()

    def catch_up(self, due_by: float | None = None) -> bool:
        """Start what is due, or was at `due_by`, as places come free, until nothing is or the service is away. Returns
        whether anything was started. Raises StoreError."""
        store, lane, seconds, started = get_store(), self._lane, self._app.config["WORKER_LEASE"], False
        while places := self._free_places():
            now = store.now()
            leased = jobs.lease_due(store, lane.name, due_by or now, now + seconds, places, lane.in_hand.copy())
            for arguments in leased:
                self._start(*arguments)
            if not leased:
                break
            started = True
        return started

    def wait(self, seconds: float | None = None) -> None:
        """Wait until nothing that it has started runs any more."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running, seconds)

    def _free_places(self) -> int:
        """How many jobs may be started now, after a wait until one may: 0 at a stop, or while the service is away and
        it is not time to ask it. A service that is away is asked by one job at a time."""
        with self._changed:
            if self._lane.state == "away":
                self._width = 1
            patience = sum(self._app.config["WORKER_PATIENCE"])
            if not self._changed.wait_for(lambda: self._running < self._width, patience):
                self._width = min(self._running + 1, PLACES)  # those that run go on for longer than a service may take
            if self._stopping.is_set() or self._lane.asked_in():
                return 0
            return self._width - self._running

    def _start(self, stored: StoredUpdate, job: Job) -> None:
        self._lane.in_hand.add(stored.id)
        with self._changed:
            self._running += 1
        threading.Thread(target=self._attempt, args=(stored, job), name=f"{self._lane.name} job", daemon=True).start()

    def _attempt(self, stored: StoredUpdate, job: Job) -> None:
        lane = self._lane
        with self._app.app_context():
            g.patience = self._app.config["WORKER_PATIENCE"]
            try:
                attempt = lane.call(stored.load(), job)
            except (ValidationError, ValueError) as error:
                attempt = Attempt(lane, job, GiveUp(f"the kept message cannot be read: {error}"))
            if not attempt.error:
                extra = {"call_id": stored.call_id, "status": stored.status, "handler": lane.name}
                logger.info("done later", extra={**extra, "fields": {"attempts": job.attempts + 1}})
            settle(stored.id, [attempt])
        with self._changed:
            self._running -= 1
            self._note(attempt.error)
            self._changed.notify_all()

    def _note(self, error: Exception | None) -> None:
        """Count a job that has ended. Each success makes room for one more at a time, so that twice as many are started
        once all have succeeded; the service's own failure leaves half as many."""
        if error is None:
            self.done += 1
            self._width = min(self._width + 1, PLACES)
            return
        self.left += 1
        if isinstance(error, Unavailable):
            self._width = max(self._width // 2, 1)
