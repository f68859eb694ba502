"""Handlers are called in order, whatever each does, and what is not done stays pending."""

import logging
from unittest.mock import Mock, call

import pytest

from handlers.http import Deferred, GiveUp, Retry
from stores import StoreError, get_store, jobs, updates
from tests.conftest import NOW, update
from work import dispatch

BOTH = [call.first(update()), call.second(update())]


@pytest.fixture
def handlers(context, monkeypatch):
    """Two handlers of the test's own, `first` and `second`; what one raises is its `side_effect`."""
    handlers = Mock(first=Mock(__name__="first"), second=Mock(__name__="second"))
    monkeypatch.setattr(dispatch, "HANDLERS", (handlers.first, handlers.second))
    return handlers


def kept():
    """The jobs of the call's updates, by handler."""
    return {job.handler: job for stored in updates.of_call(get_store(), "call-1") for job in stored.jobs}


@pytest.mark.parametrize("error", [Retry("later"), GiveUp("never"), ValueError("bug"), KeyError()])
def test_a_handler_that_raises_stops_no_other(handlers, error):
    handlers.first.side_effect = error
    dispatch.dispatch(update())
    assert handlers.mock_calls == BOTH
    assert list(kept()) == ["first"]
    assert kept()["first"].error


def test_the_update_is_kept_with_all_jobs_before_any_handler_is_called(handlers):
    seen = []
    handlers.first.side_effect = lambda update: seen.extend(kept())
    dispatch.dispatch(update())
    assert sorted(seen) == ["first", "second"]


def test_every_handler_is_called_in_order_and_a_repeat_calls_nobody(handlers):
    dispatch.dispatch(update())
    dispatch.dispatch(update(timestamp="2026-01-01T00:00:00Z"))
    assert handlers.mock_calls == BOTH
    assert kept() == {}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GiveUp("answered 404"), ("failed", 1, NOW, None)),
        (Retry("busy", after=7), ("pending", 1, NOW, NOW + 7)),
        (Deferred("no time left"), ("pending", 0, None, NOW)),
    ],
)
def test_an_error_can_say_when_it_is_tried_again_and_whether_this_was_an_attempt(handlers, error, expected):
    handlers.first.side_effect = error
    dispatch.dispatch(update())
    job = kept()["first"]
    assert (job.state, job.attempts, job.first_tried_at, job.due_at) == expected
    assert job.error == str(error)


def test_a_reason_is_kept_as_text_that_every_database_takes(handlers):
    handlers.first.side_effect = Retry("a\ud800b\0")
    dispatch.dispatch(update())
    assert kept()["first"].error == "a?b"


def test_retries_come_later_and_later_up_to_an_hour(handlers, clock):
    handlers.first.side_effect = Retry("not yet")
    dispatch.dispatch(update())
    for expected in (30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600):
        due = kept()["first"].due_at
        assert 0.8 * expected <= due - clock.now <= 1.2 * expected
        clock.now = due
        assert dispatch.retry_one(handlers.first, clock.now) is False
    assert kept()["first"].attempts == 11


def test_it_fails_for_good_24_hours_after_the_first_attempt(handlers, clock):
    handlers.first.side_effect = Retry("down")
    dispatch.dispatch(update())
    clock.now += 24 * 3600 - 1
    dispatch.retry_one(handlers.first, clock.now)
    clock.now = kept()["first"].due_at
    dispatch.retry_one(handlers.first, clock.now)
    assert kept()["first"].due_at is None


def test_a_retry_does_what_is_due_with_the_update_as_it_was_and_notes_when(handlers, clock):
    original = update("ended-with-error", error="x", assistant={"metadata": {"id": 1}})
    handlers.second.side_effect = [Retry("down"), None]
    dispatch.dispatch(original)
    assert dispatch.retry_one(handlers.second, clock.now) is None
    clock.now += 40
    assert dispatch.retry_one(handlers.second, clock.now) is True
    assert handlers.mock_calls == [call.first(original), call.second(original), call.second(original)]
    [job] = kept().values()
    assert (job.state, job.attempts, job.done_at, job.error) == ("done", 2, clock.now, "down")
    assert dispatch.retry_one(handlers.second, clock.now + 10**6) is None
    assert jobs.backlog(get_store()) == []


def test_where_it_cannot_be_settled_it_is_done_again_when_the_lease_is_over(handlers, clock, monkeypatch, caplog):
    with monkeypatch.context() as broken:
        broken.setattr(jobs, "settle", Mock(side_effect=StoreError("calls.db: disk full")))
        dispatch.dispatch(update())
    assert "disk full" in caplog.records[0].error
    assert dispatch.retry_one(handlers.first, clock.now + 59) is None
    assert dispatch.retry_one(handlers.first, clock.now + 60) is True


def test_expected_failures_are_warnings_and_bugs_are_errors_with_a_traceback(handlers, caplog):
    handlers.first.side_effect, handlers.second.side_effect = Retry("answered 500"), ValueError("bug")
    dispatch.dispatch(update())
    [expected, bug] = caplog.records
    assert (expected.levelno, expected.exc_info, expected.error) == (logging.WARNING, None, "answered 500")
    assert (bug.levelno, bug.exc_info[0], bug.handler) == (logging.ERROR, ValueError, "second")
    assert (bug.call_id, bug.status) == ("call-1", "in-progress")
