"""Pauses, deadlines and the retry thread, in one process and with real services."""

import logging
import threading

import pytest
from flask import g

from config import INTERNALS
from handlers.crm import update_crm
from handlers.http import Deferred
from handlers.service import Attempt
from handlers.service import ask as ask_service
from stores import get_store, jobs, updates
from tests.conftest import NOW, URL, message, update, wait_until
from work import dispatch, retries

pytestmark = pytest.mark.usefixtures("context")


@pytest.fixture
def settings(settings, service):
    return settings | {"CRM_WEBHOOK_URL": service.url, "RETRY_EVERY": 0.01, "UPKEEP_EVERY": 0.01}


@pytest.fixture
def retrying(app):
    """Start the retry thread, in the test; it ends with the test."""
    stops = []

    def start():
        stops.append(retries.start_retrying(app))
        return stops[-1]

    yield start
    for stop in stops:
        stop()


def job(call_id="call-1"):
    """The job of the call's update that is not done; None where all are."""
    found = (job for stored in updates.of_call(get_store(), call_id) for job in stored.jobs)
    return next((job for job in found if job.state != "done"), None)


def retry_one(clock):
    return dispatch.retry_one(update_crm, clock.now)


def post_calls(client, *names):
    for name in names:
        assert client.post(URL, json=message(call_id=name)).data == b"OK"


@pytest.mark.parametrize(
    ("reply", "error", "due"),
    [
        (500, "answered 500", (24, 36)),
        (401, "answered 401", (24, 36)),
        ((429, {"Retry-After": "7"}), "answered 429", (7, 7)),
        ((503, {"Retry-After": "99999"}), "answered 503", (3600, 3600)),
        (lambda request: request.wfile.write(b"<html>hello</html>\r\n\r\n"), "no connection or no valid", (24, 36)),
    ],
)
def test_what_the_service_did_not_take_is_pending_and_tried_again(client, service, clock, reply, error, due):
    service.answers.append(reply)
    post_calls(client, "a")
    assert error in job("a").error
    assert due[0] <= round(job("a").due_at - NOW, 6) <= due[1]
    assert len(service.requests) == 1
    clock.now = job("a").due_at
    assert retry_one(clock) is True
    assert job("a") is None
    [(_, first_headers, first), (_, headers, again)] = service.requests
    assert again == first
    assert headers["Idempotency-Key"] == first_headers["Idempotency-Key"]


def test_three_failures_in_a_row_pause_the_handler(client, service, caplog):
    service.default = 500
    post_calls(client, "a", "b", "c", "d", "e")
    assert len(service.requests) == 3
    assert [(job(name).attempts, job(name).error) for name in "de"] == [(0, "answered 500")] * 2
    assert [record.levelno for record in caplog.records if record.message == "handler paused"] == [logging.WARNING]


def test_only_a_probe_every_30_s_asks_a_paused_service_and_a_success_ends_the_pause(client, service, clock):
    service.default = 500
    post_calls(client, "a", "b", "c", "d")
    clock.now += 29
    assert retry_one(clock) is None
    clock.now += 1
    assert retry_one(clock) is False
    assert retry_one(clock) is None
    post_calls(client, "e")
    assert len(service.requests) == 4
    service.default = 200
    clock.now += 30
    assert retry_one(clock) is True
    post_calls(client, "f")
    assert len(service.requests) == 6
    while retry_one(clock):
        pass
    assert jobs.backlog(get_store()) == []


def test_a_success_in_between_starts_the_count_anew(client, service):
    service.answers = [500, 500, 200] * 3
    post_calls(client, *"abcdefghi")
    assert len(service.requests) == 9


def test_retry_after_holds_for_the_handler_at_once(client, service, clock):
    service.answers.append((429, {"Retry-After": "120"}))
    post_calls(client, "a", "b")
    assert len(service.requests) == 1
    clock.now += 119
    assert retry_one(clock) is None
    clock.now += 1
    assert retry_one(clock) is True


def test_refusals_that_are_not_the_services_failure_pause_nothing(client, service):
    service.default = 401
    post_calls(client, *"abcde")
    assert len(service.requests) == 5


def test_a_hanging_service_is_left_in_time(app, client, service, hanging):
    app.config["OUTBOUND_TIMEOUT"] = 0.2
    post_calls(client, "a")
    assert job("a").error == "no answer in time"


def test_what_there_is_no_time_left_for_stays_pending_untried(app, client, service):
    app.config["DEADLINE"] = 0
    post_calls(client, "a")
    assert service.requests == []
    [stored] = updates.of_call(get_store(), "a")
    assert [job.handler for job in stored.jobs] == ["log_event", "update_crm"]
    assert {(job.attempts, job.due_at) for job in stored.jobs} == {(0, NOW)}


@pytest.fixture
def ask(app, monkeypatch):
    """Call a function as a handler of a request would, or a retry; there is room for one request."""
    monkeypatch.setitem(INTERNALS, "OUTBOUND_SLOTS", 1)

    def ask(function, retrying=False):
        with app.app_context():
            g.attempt = Attempt("update_crm", retrying=retrying)
            return ask_service(function)

    return ask


def test_so_many_requests_wait_for_a_service_and_no_more_but_retries_are_not_counted(ask):
    arrived, release = threading.Event(), threading.Event()
    waiting = threading.Thread(target=ask, args=(lambda: (arrived.set(), release.wait(20)),))
    waiting.start()
    assert arrived.wait(20)
    with pytest.raises(Deferred):
        ask(lambda: None)
    assert ask(lambda: "a retry", retrying=True) == "a retry"
    release.set()
    waiting.join()
    assert ask(lambda: "free again") == "free again"


def test_a_request_that_fails_makes_room_for_the_next(ask):
    with pytest.raises(ZeroDivisionError):
        ask(lambda: 1 / 0)
    assert ask(lambda: "free again") == "free again"


class TestThread:
    def test_there_is_one_a_process(self, app, retrying):
        assert retrying() is retrying()
        assert [thread.name for thread in threading.enumerate()].count("retry-update_crm") == 1

    def test_it_does_what_is_due_even_after_the_store_failed(self, client, service, clock, retrying, tmp_path, caplog):
        service.answers.append(500)
        post_calls(client, "a")
        path, away = tmp_path / "calls.db", tmp_path / "away"
        get_store().close()
        path.rename(away)
        path.mkdir()
        clock.now += 40
        retrying()
        wait_until(lambda: "retries wait for the store" in caplog.text)
        path.rmdir()
        away.rename(path)
        wait_until(lambda: job("a") is None)

    def test_work_of_a_handler_that_is_gone_is_told_once_and_fails_after_24_hours(self, clock, retrying, caplog):
        updates.record(get_store(), update(), ["old_handler"])
        retrying()
        wait_until(lambda: job().error == "no such handler any more")
        assert job().due_at == NOW + 3600
        clock.now += 24 * 3600
        wait_until(lambda: job().state == "failed")
        assert caplog.text.count("no such handler") == 1

    def test_what_is_done_in_requests_is_settled_soon_and_a_stop_waits_for_it(self, client, retrying, monkeypatch):
        settled, goes_on = [], threading.Event()
        settle = jobs.settle

        def slow(store, *settlements):
            goes_on.wait(20)
            settled.append(len(settlements))
            settle(store, *settlements)

        monkeypatch.setattr(jobs, "settle", slow)
        stop = retrying()
        post_calls(client, "a")
        assert job("a").state == "leased"
        post_calls(client, *"bcd")
        goes_on.set()
        stop()
        assert settled in ([1, 3], [2, 2], [3, 1], [4])
        assert [job(name) for name in "abcd"] == [None] * 4

    def test_stopping_it_tries_due_work_a_last_time_and_tells_what_stays(
        self, client, service, clock, retrying, caplog
    ):
        service.default = 500
        post_calls(client, *"abcd")
        stop = retrying()
        service.default = 200
        stop()
        # The pause is over with the first success; what failed before it is not due yet.
        assert [body["call_id"] for body in service.bodies] == ["a", "b", "c", "d"]
        [record] = [record for record in caplog.records if record.message == "stopped with work pending"]
        assert record.fields == {"update_crm": 3}

    def test_stopping_it_waits_for_what_it_has_in_hand(self, client, service, clock, retrying, hanging):
        service.answers.insert(0, 500)
        post_calls(client, "a")
        clock.now += 40
        stop = retrying()
        assert hanging.arrived.wait(20)
        threading.Timer(0.1, hanging.release.set).start()
        stop()
        assert job("a") is None
        assert len(service.requests) == 2
