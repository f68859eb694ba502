"""Ten days of calls, outages, repeats, reversals, lost ends, retention and restarts, against a plain model of them."""

from datetime import UTC, datetime
from threading import Event

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is in requirements-dev.txt")

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import handlers
from app import create_app
from handlers.active_calls import track_call
from handlers.errors import Unavailable
from schemas.status_update import load_update
from schemas.statuses import ERRORS, FINAL, IN_PROGRESS
from stores import get_store, jobs, updates
from tests.conftest import Clock, empty, message, retry_one
from work import upkeep
from work.dispatch import dispatch
from work.lanes import get_lanes

DAY = 24 * 3600.0
STALE = 12 * 3600.0
RETENTION = 2  # days
CALLS = [f"call-{number}" for number in range(6)]


class Call:
    """What the model knows of a call."""

    def __init__(self):
        self.started_at, self.final = None, None

    def status(self, seen):
        return self.final or (IN_PROGRESS if self.started_at else seen)


class Week(RuleBasedStateMachine):
    """`updates`: when each kept update was received, by its key. `delivered`: those that the CRM has got."""

    config, monkeypatch = {}, None

    def __init__(self):
        super().__init__()
        self.clock, self.updates, self.delivered, self.down = Clock(), {}, set(), False
        self.calls = {}
        self.monkeypatch.setattr(handlers, "HANDLERS", (track_call, self.crm))
        self.open()
        empty(get_store())

    def open(self):
        self.app = create_app(self.config | {"CLOCK": self.clock, "RETENTION_DAYS": RETENTION, "TESTING": True})
        self.context = self.app.app_context()
        self.context.push()

    def teardown(self):
        self.app.extensions["store"].close()
        self.context.pop()

    def crm(self, update):
        key = (update.call.id, update.call.status)
        if self.down:
            raise Unavailable("answered 500")
        assert key not in self.delivered
        self.delivered.add(key)

    @rule()
    def restart(self):
        self.teardown()
        self.open()

    @rule(call_id=st.sampled_from(CALLS), status=st.sampled_from([IN_PROGRESS, *FINAL, "ringing"]))
    def receive(self, call_id, status):
        """In any order, again and again, and many never."""
        self.clock.now += 1
        dispatch(load_update(message(status, call_id), datetime.fromtimestamp(self.clock.now, UTC)))
        if (call_id, status) in self.updates:
            return
        self.updates[call_id, status] = self.clock.now
        call = self.calls.setdefault(call_id, Call())
        if status == IN_PROGRESS:
            call.started_at = call.started_at or self.clock.now
        elif status in FINAL:
            call.final = min(filter(None, (call.final, status)), key=lambda final: (final not in ERRORS, final))

    @rule(down=st.booleans())
    def outage(self, down):
        self.down = down

    @rule(hours=st.sampled_from([0.01, 1, 11, 13, 25]))
    def pass_time(self, hours):
        self.clock.now += hours * 3600
        for lane in get_lanes():
            lane.ask_now()
            while retry_one(lane.handler, self.clock.now) is not None:
                pass

    @rule()
    def prune(self):
        pending = {key for key, job in self.jobs().items() if job.due_at is not None}
        upkeep.prune(Event())
        before = min(self.clock.now, max(self.updates.values(), default=0)) - RETENTION * DAY
        self.updates = {key: at for key, at in self.updates.items() if at >= before or key in pending}
        self.delivered &= self.updates.keys()
        self.calls = {id: call for id, call in self.calls.items() if id in {key[0] for key in self.updates}}

    @rule()
    def run_again(self):
        """The service is back, and somebody runs again what has failed."""
        self.down = False
        self.clock.now += 3600
        for lane in get_lanes():
            jobs.retry_now(get_store(), lane.name, failed=True)
        self.pass_time(0.01)
        assert jobs.backlog(get_store()) == []

    def jobs(self):
        """The job of each update that is not done."""
        kept = updates.since(get_store())
        return {(each.call_id, each.status): job for each in kept for job in each.jobs if job.state != "done"}

    @invariant()
    def what_is_kept_pending_active_and_shown_agrees_with_the_model(self):
        kept = updates.since(get_store())
        assert {(each.call_id, each.status): each.received_at for each in kept} == self.updates
        assert self.jobs().keys() == self.updates.keys() - self.delivered
        on = {id: call.started_at for id, call in self.calls.items() if call.started_at and not call.final}
        shown = self.app.test_client().get("/calls.json").json
        stale = {id for id, started_at in on.items() if self.clock.now - started_at >= STALE}
        assert {call["id"] for call in shown["active"]} == on.keys() - stale
        assert {call["id"] for call in shown["stale"]} == stale
        assert {call["id"]: call["status"] for call in shown["recent"]} == {
            id: call.status("ringing") for id, call in self.calls.items()
        }


def test_ten_days_agree_with_a_plain_model(store_settings, monkeypatch):
    monkeypatch.setattr(Week, "config", store_settings)
    monkeypatch.setattr(Week, "monkeypatch", monkeypatch)
    quick = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    run_state_machine_as_test(
        Week, settings=settings(max_examples=12, stateful_step_count=40, deadline=None, suppress_health_check=quick)
    )
