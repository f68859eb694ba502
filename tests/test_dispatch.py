"""Handlers are called in order, whatever each does, and what is not done stays pending."""

import logging
from contextlib import closing
from unittest.mock import Mock, call

import pytest

import handlers as registry
from app import create_app
from handlers.errors import Deferred, GiveUp, Retry
from stores import StoreError, get_store, jobs, updates
from stores.records import Job
from tests.conftest import NOW, free_port, jobs_of, retry_one, update
from work import lanes
from work.dispatch import dispatch

BOTH = [call.first(update()), call.second(update())]


@pytest.fixture
def handlers(app, context, monkeypatch):
    """Two handlers of the test's own, `first` and `second`; what one raises is its `side_effect`."""
    handlers = Mock(first=Mock(__name__="first"), second=Mock(__name__="second"))
    monkeypatch.setattr(registry, "HANDLERS", (handlers.first, handlers.second))
    lanes.init_app(app)
    return handlers


def kept():
    """The jobs of the call's updates, by handler."""
    return jobs_of(get_store())


@pytest.mark.parametrize("error", [Retry("later"), GiveUp("never"), ValueError("bug"), KeyError()])
def test_a_handler_that_raises_stops_no_other(handlers, error):
    handlers.first.side_effect = error
    dispatch(update())
    assert handlers.mock_calls == BOTH
    assert list(kept()) == ["first"]
    assert kept()["first"].error


def test_the_update_is_kept_with_all_jobs_before_any_handler_is_called(handlers):
    seen = []
    handlers.first.side_effect = lambda update: seen.extend(kept().values())
    dispatch(update())
    assert [(job.handler, job.state, job.due_at) for job in seen] == [
        ("first", "leased", NOW + 30),
        ("second", "leased", NOW + 30),
    ]


def test_every_handler_is_called_in_order_and_a_repeat_calls_nobody_and_is_counted(handlers):
    dispatch(update())
    dispatch(update(timestamp="2026-01-01T00:00:00Z", received_at=NOW + 60))
    assert handlers.mock_calls == BOTH
    assert kept() == {}
    [stored] = updates.of_call(get_store(), "call-1")
    assert (stored.handlers, stored.times, stored.last_received_at) == (("first", "second"), 2, NOW + 60)


def test_a_repeat_that_cannot_be_counted_is_answered_all_the_same(handlers, monkeypatch):
    dispatch(update())
    count_repeat = Mock(side_effect=StoreError("calls.db: disk full"))
    monkeypatch.setattr(updates, "count_repeat", count_repeat)
    dispatch(update())
    count_repeat.assert_called_once()


def test_a_spooled_update_calls_nobody_and_its_work_is_due_now(settings):
    away = create_app(settings | {"DATABASE_URL": f"postgresql://127.0.0.1:{free_port()}/calls"})
    with closing(away.extensions["store"]) as store, away.app_context():
        dispatch(update())
        assert jobs_of(store.spool) == {"log_event": Job("log_event", "pending", NOW)}


def test_a_handler_that_is_off_or_wants_nothing_of_an_update_has_no_work(app, handlers, monkeypatch):
    monkeypatch.setattr(registry, "NEEDS", {handlers.first: "CRM_WEBHOOK_URL"})
    monkeypatch.setitem(registry.WANTS, handlers.second, lambda update: update.call.status == "ended")
    lanes.init_app(app)
    dispatch(update())
    dispatch(update("ended"))
    assert handlers.mock_calls == [call.second(update("ended"))]
    assert [stored.handlers for stored in updates.of_call(get_store(), "call-1")] == [(), ("second",)]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (GiveUp("answered 410"), ("failed", 1, NOW, None)),
        (Retry("busy", after=7), ("pending", 1, NOW, NOW + 7)),
        (Deferred("no time left"), ("pending", 0, None, NOW)),
    ],
)
def test_an_error_can_say_when_it_is_tried_again_and_whether_this_was_an_attempt(handlers, error, expected):
    handlers.first.side_effect = error
    dispatch(update())
    job = kept()["first"]
    assert (job.state, job.attempts, job.first_tried_at, job.due_at) == expected
    assert job.error == str(error)
    attempts = [handler for _, handler, *_ in jobs.failed_attempts(get_store(), "call-1")]
    assert attempts == ["first"] * expected[1]


def test_a_reason_is_kept_as_text_that_every_database_takes(handlers):
    handlers.first.side_effect = Retry("a\ud800b\0")
    dispatch(update())
    assert kept()["first"].error.isprintable()


def test_a_retry_does_what_is_due_with_the_update_as_it_was_and_notes_when(handlers, clock):
    original = update("ended-with-error", error="x", assistant={"metadata": {"id": 1}})
    handlers.second.side_effect = [Retry("down"), None]
    dispatch(original)
    assert retry_one(handlers.second, clock.now) is None
    clock.now += 40
    assert retry_one(handlers.second, clock.now) is True
    assert handlers.mock_calls == [call.first(original), call.second(original), call.second(original)]
    [job] = kept().values()
    assert (job.state, job.attempts, job.done_at, job.error) == ("done", 2, clock.now, "down")
    assert retry_one(handlers.second, clock.now + 10**6) is None
    assert jobs.backlog(get_store()) == []


def test_where_it_cannot_be_written_it_is_done_again_when_the_lease_is_over(handlers, clock, monkeypatch):
    with monkeypatch.context() as broken, pytest.raises(StoreError, match="disk full"):
        broken.setattr(jobs, "settle", Mock(side_effect=StoreError("calls.db: disk full")))
        dispatch(update())
    assert handlers.mock_calls == BOTH
    assert retry_one(handlers.first, clock.now + 29) is None
    assert retry_one(handlers.first, clock.now + 30) is True


def test_expected_failures_are_warnings_and_bugs_are_errors_with_a_traceback(handlers, caplog):
    handlers.first.side_effect, handlers.second.side_effect = Retry("answered 500"), ValueError("bug")
    dispatch(update())
    [expected, bug] = caplog.records
    assert (expected.levelno, expected.exc_info, expected.error) == (logging.WARNING, None, "answered 500")
    assert (bug.levelno, bug.exc_info[0], bug.handler) == (logging.ERROR, ValueError, "second")
    assert (bug.call_id, bug.status) == ("call-1", "in-progress")
