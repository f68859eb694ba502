"""What becomes of a job after an attempt."""

import pytest

from config import INTERNALS
from handlers.errors import Deferred, DoneBefore, GiveUp, OutOfPatience, Retry, Unavailable
from stores.records import Job
from tests.conftest import NOW
from work.schedule import after_attempt

JOB = Job("update_crm", "leased", NOW + 30)
DAY = 24 * 3600.0


def tried(times, first_tried_at=NOW - 60):
    return Job("update_crm", "leased", NOW + 30, times, first_tried_at, "answered 500")


def test_a_success_ends_it_and_keeps_the_last_reason():
    job = after_attempt(tried(2), None, NOW, INTERNALS)
    assert job == Job("update_crm", "done", None, 3, NOW - 60, "answered 500", NOW)


def test_an_attempt_that_failed_is_counted_and_the_first_is_dated():
    job = after_attempt(JOB, Retry("busy", after=7), NOW, INTERNALS)
    assert job == Job("update_crm", "pending", NOW + 7, 1, NOW, "busy")
    assert after_attempt(tried(4), Retry("busy", after=7), NOW, INTERNALS).first_tried_at == NOW - 60


@pytest.mark.parametrize("error", [ValueError("bug"), KeyError(), Retry("busy"), Unavailable("answered 503")])
def test_attempts_come_later_and_later_up_to_an_hour(error):
    for attempts, pause in enumerate((30, 60, 120, 240, 480, 960, 1920, 3600, 3600)):
        job = after_attempt(tried(attempts), error, NOW, INTERNALS)
        assert 0.8 * pause <= job.due_at - NOW <= 1.2 * pause
        assert job.error == (str(error) or "KeyError")
    assert after_attempt(tried(10**6), error, NOW, INTERNALS).due_at <= NOW + 1.2 * 3600


@pytest.mark.parametrize(
    ("error", "asked_in", "due"),
    [
        (Unavailable("answered 503"), 12.5, 12.5),  # with its lane
        (Unavailable("answered 429", after=90), 90, 90),
        (Retry("busy", after=9 * 3600), None, 3600),
        (OutOfPatience("no answer yet", after=0), None, 0),  # the worker has more patience
    ],
)
def test_it_is_due_when_the_error_or_the_lane_says(error, asked_in, due):
    assert after_attempt(tried(5), error, NOW, INTERNALS, asked_in).due_at == NOW + due


def test_it_fails_for_good_24_hours_after_the_first_attempt_or_when_nothing_can_help():
    at_last = tried(30, NOW - DAY)
    assert after_attempt(at_last, Retry("down"), NOW - 1, INTERNALS).state == "pending"
    assert after_attempt(at_last, Retry("down"), NOW, INTERNALS) == Job(
        "update_crm", "failed", None, 31, NOW - DAY, "down", NOW
    )
    assert after_attempt(JOB, GiveUp("answered 410"), NOW, INTERNALS).state == "failed"


def test_what_was_not_tried_costs_no_attempt_and_keeps_the_reason_of_the_last():
    assert after_attempt(JOB, Deferred("slow"), NOW, INTERNALS) == Job("update_crm", "pending", NOW, 0, None, "slow")
    job = after_attempt(tried(3, NOW - 2 * DAY), Deferred("just reported", after=5), NOW, INTERNALS)
    assert job == Job("update_crm", "pending", NOW + 5, 3, NOW - 2 * DAY, "answered 500")


def test_what_was_done_before_is_done_where_it_was_tried_before():
    done = after_attempt(tried(1), DoneBefore("answered 409"), NOW, INTERNALS)
    assert (done.state, done.attempts, done.done_at) == ("done", 2, NOW)
    assert after_attempt(JOB, DoneBefore("answered 409"), NOW, INTERNALS).state == "pending"
