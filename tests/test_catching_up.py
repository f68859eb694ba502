"""Work that is pending is done several jobs at a time, and no service holds up another."""

import gzip
import socket
import threading
import time

import pytest

from handlers.crm import update_crm
from handlers.http import Unavailable, post
from handlers.service import service as service_of
from stores import get_store, jobs, updates
from tests.conftest import URL, Service, message, update, wait_until
from work import retries

pytestmark = pytest.mark.usefixtures("context")


@pytest.fixture
def slack():
    slack = Service()
    yield slack
    slack.close()


@pytest.fixture
def settings(settings, service, slack):
    urls = {"CRM_WEBHOOK_URL": service.url, "SLACK_WEBHOOK_URL": slack.url}
    return settings | urls | {"RETRY_EVERY": 0.01, "UPKEEP_EVERY": 0.01, "ALERT_INTERVAL": 0}


def keep_pending(count):
    for number in range(count):
        updates.record(get_store(), update(call_id=f"call-{number}"), ["update_crm"])


def post_calls(client, count, status="in-progress", error=None):
    """Post updates of calls, each with another error where one is given."""
    for number in range(count):
        client.post(URL, json=message(status, f"{status}-{number}", error=error and error + "x" * number))


def pending():
    return {each.handler: each.pending for each in jobs.backlog(get_store()) if each.pending}


class Gate:
    """How a service answers that counts who is in it, and lets them go when told."""

    def __init__(self):
        self.inside, self.most, self.lock = 0, 0, threading.Lock()
        self.open = threading.Semaphore(0)

    def __call__(self, request):
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.open.acquire(timeout=20)
        with self.lock:
            self.inside -= 1
        request.answer()


def test_a_service_that_is_just_back_gets_one_request_then_two_then_four_up_to_eight(app, service):
    keep_pending(40)
    service.default = gate = Gate()
    done = []
    due_by = get_store().now()
    work = threading.Thread(target=lambda: done.extend(retries.catch_up(app, update_crm, due_by)))
    work.start()
    for inside, let_go in ((1, 1), (2, 1), (4, 2), (8, 4)):
        wait_until(lambda: gate.inside == inside)  # noqa: B023
        gate.open.release(let_go)
    gate.open.release(40)
    work.join()
    assert done == [True] * 40
    assert gate.most == 8
    assert pending() == {}


def test_when_it_fails_again_it_gets_fewer_and_none_after_three_failures(app, service):
    keep_pending(40)
    service.answers, service.default = [200] * 3, 503
    done = list(retries.catch_up(app, update_crm, get_store().now()))
    assert done.count(True) == 3
    assert 3 <= done.count(False) <= 3 + 8  # those under way when the third failed
    assert 6 <= len(service.requests) <= len(done)
    assert service_of("update_crm").breaker.probe_at is not None


def test_an_alert_is_not_behind_the_backlog_of_the_crm(app, service, slack):
    keep_pending(30)
    service.default = gate = Gate()
    updates.record(get_store(), update("ended-with-error", "failed", error="boom"), ["alert_on_error"])
    stop = retries.start_retrying(app)
    wait_until(lambda: slack.requests)
    assert pending()["update_crm"] > 20
    gate.open.release(100)
    wait_until(lambda: pending() == {})
    stop()


def test_a_service_that_hangs_takes_no_other_services_threads(app, client, slack, monkeypatch):
    app.config |= {"OUTBOUND_TIMEOUT": 0.2, "PAUSE_AFTER": 10**6, "CRM_WEBHOOK_URL": "http://hangs.invalid"}
    slack.default = (200, {"Connection": "close"}, b"ok")  # so that each alert takes a thread to connect, too
    release, look_up = threading.Event(), socket.getaddrinfo

    def hang(host, *args):
        if host == "hangs.invalid":
            release.wait(20)
            raise OSError
        return look_up(host, *args)

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    monkeypatch.setattr("handlers.service.MOST_AT_ONCE", 2)
    post_calls(client, 5, "ended-with-error", "failed")
    release.set()
    assert len(slack.requests) == 5
    assert pending() == {"update_crm": 5}


def test_a_service_that_trickles_is_cut_off_when_its_time_is_over(app, service):
    app.config["OUTBOUND_TIMEOUT"] = 0.2
    cut = threading.Event()

    def trickle(request):
        try:
            for _ in range(1000):
                request.wfile.write(b"H")
                time.sleep(0.01)
        except OSError:
            cut.set()

    service.default = trickle
    with pytest.raises(Unavailable, match="no answer in time"):
        post(service.url, {})
    assert cut.wait(20)


def test_an_answer_that_our_own_deadline_would_cut_off_is_not_waited_for(app, client, service):
    app.config["DEADLINE"] = app.config["OUTBOUND_TIMEOUT"]
    post_calls(client, 4)
    assert service.requests == []
    assert service_of("update_crm").breaker.paused_at is None
    assert list(retries.catch_up(app, update_crm, get_store().now())) == [True] * 4
    assert len(service.requests) == 4


def test_with_slack_paused_updates_without_an_error_leave_no_work(client, slack):
    slack.default = 503
    post_calls(client, 4, "ended-with-error", "failed")
    assert service_of("alert_on_error").breaker.paused_at is not None
    post_calls(client, 5, "ended")
    assert pending() == {"alert_on_error": 4}
    assert len(slack.requests) == 3


@pytest.mark.parametrize("packed", [True, False])
def test_answers_are_read_up_to_64_kb(service, packed):
    body = gzip.compress(b"0" * 10**8) if packed else b"0" * 10**6
    service.default = (200, {"Content-Encoding": "gzip"} if packed else {}, body)
    assert len(post(service.url, {})) == 64 * 1024


def test_a_stop_waits_for_no_service_that_hangs(app, service):
    app.config |= {"OUTBOUND_TIMEOUT": 0.2, "LAST_TRY": 0.4}
    keep_pending(20)
    service.default = gate = Gate()
    stop = retries.start_retrying(app)
    wait_until(lambda: service.requests)
    stop()
    assert gate.inside == gate.most  # all still hang
    gate.open.release(20)
    assert pending() == {"update_crm": 20}
