"""Handlers are called in order, whatever each does, and what is not done stays pending."""

import logging

import pytest

import dispatch
from handlers.outbound import Deferred, GiveUp, Retry
from stores import StoreError, get_store, jobs, updates
from tests.conftest import NOW, update


@pytest.fixture
def handlers(app, monkeypatch):
    """Two handlers of the test's own: the names called are in `.called`; what `.raises` names, a handler raises."""

    class Handlers:
        called, raises = [], {}

        def make(self, name):
            def handler(update):
                self.called.append(name)
                if error := self.raises.get(name):
                    raise error

            handler.__name__ = name
            return handler

    handlers = Handlers()
    handlers.both = (handlers.make("first"), handlers.make("second"))
    monkeypatch.setattr(dispatch, "HANDLERS", handlers.both)
    with app.app_context():
        yield handlers


def kept():
    """The jobs of the call's updates, by handler."""
    return {job.handler: job for stored in updates.of_call(get_store(), "call-1") for job in stored.jobs}


def test_every_handler_is_called_in_order_and_nothing_stays_pending(handlers):
    dispatch.dispatch(update())
    assert handlers.called == ["first", "second"]
    assert kept() == {}


@pytest.mark.parametrize("error", [Retry("later"), GiveUp("never"), ValueError("bug"), KeyError()])
def test_a_handler_that_raises_stops_no_other(handlers, error):
    handlers.raises["first"] = error
    dispatch.dispatch(update())
    assert handlers.called == ["first", "second"]
    assert list(kept()) == ["first"]
    assert kept()["first"].error


def test_the_update_is_kept_with_all_jobs_before_any_handler_is_called(handlers, monkeypatch):
    seen = []
    monkeypatch.setattr(dispatch, "HANDLERS", (handlers.both[0], lambda update: seen.append(sorted(kept()))))
    dispatch.HANDLERS[1].__name__ = "second"
    dispatch.dispatch(update())
    assert seen == [["first", "second"]]


def test_a_repeat_calls_nobody(handlers):
    dispatch.dispatch(update())
    dispatch.dispatch(update(timestamp="2026-01-01T00:00:00Z"))
    assert handlers.called == ["first", "second"]


def test_what_gave_up_has_failed_for_good(handlers):
    handlers.raises["first"] = GiveUp("answered 404")
    dispatch.dispatch(update())
    assert (kept()["first"].due_at, kept()["first"].error) == (None, "answered 404")


def test_retries_come_later_and_later_up_to_an_hour(handlers, clock):
    handlers.raises["first"] = Retry("not yet")
    dispatch.dispatch(update())
    delays = []
    for _ in range(10):
        due = kept()["first"].due_at
        delays.append(due - clock.now)
        clock.now = due
        assert dispatch.retry_one(handlers.both[0], clock.now) is False
    for delay, expected in zip(delays, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600], strict=True):
        assert 0.8 * expected <= delay <= 1.2 * expected
    assert kept()["first"].attempts == 11


def test_a_handler_can_say_when(handlers):
    handlers.raises["first"] = Retry("busy", after=7)
    dispatch.dispatch(update())
    assert kept()["first"].due_at == NOW + 7


def test_not_now_costs_no_attempt(handlers):
    handlers.raises["first"] = Deferred("no time left")
    dispatch.dispatch(update())
    assert (kept()["first"].attempts, kept()["first"].first_tried_at, kept()["first"].due_at) == (0, None, NOW)


def test_it_fails_for_good_24_hours_after_the_first_attempt(handlers, clock):
    handlers.raises["first"] = Retry("down")
    dispatch.dispatch(update())
    clock.now += 24 * 3600 - 1
    dispatch.retry_one(handlers.both[0], clock.now)
    clock.now = kept()["first"].due_at
    dispatch.retry_one(handlers.both[0], clock.now)
    assert kept()["first"].due_at is None


def test_a_retry_does_what_is_due_and_notes_when(handlers, clock):
    handlers.raises["second"] = Retry("down")
    dispatch.dispatch(update())
    del handlers.raises["second"]
    assert dispatch.retry_one(handlers.both[1], clock.now) is None
    clock.now += 40
    assert dispatch.retry_one(handlers.both[1], clock.now) is True
    assert handlers.called == ["first", "second", "second"]
    [job] = kept().values()
    assert (job.state, job.attempts, job.done_at, job.error) == ("done", 2, clock.now, "down")
    assert dispatch.retry_one(handlers.both[1], clock.now + 10**6) is None
    assert jobs.backlog(get_store()) == []


def test_a_retry_hands_on_the_update_as_it_was(handlers, clock, monkeypatch):
    seen = []

    def first(update):
        seen.append(update)
        raise Retry("again", after=0)

    monkeypatch.setattr(dispatch, "HANDLERS", (first,))
    original = update("ended-with-error", error="x", assistant={"metadata": {"id": 1}})
    dispatch.dispatch(original)
    dispatch.retry_one(first, clock.now)
    assert seen == [original, original]


def test_where_it_cannot_be_settled_it_is_done_again_when_the_lease_is_over(handlers, clock, monkeypatch, caplog):
    def settle(*args):
        raise StoreError("calls.db: disk full")

    with monkeypatch.context() as broken:
        broken.setattr(jobs, "settle", settle)
        dispatch.dispatch(update())
    assert "disk full" in caplog.records[0].error
    assert dispatch.retry_one(handlers.both[0], clock.now + 59) is None
    assert dispatch.retry_one(handlers.both[0], clock.now + 60) is True


def test_expected_failures_are_warnings_and_bugs_are_errors_with_a_traceback(handlers, caplog):
    handlers.raises |= {"first": Retry("answered 500"), "second": ValueError("bug")}
    dispatch.dispatch(update())
    [expected, bug] = caplog.records
    assert (expected.levelno, expected.exc_info, expected.error) == (logging.WARNING, None, "answered 500")
    assert (bug.levelno, bug.exc_info[0], bug.handler) == (logging.ERROR, ValueError, "second")
    assert (bug.call_id, bug.status) == ("call-1", "in-progress")
