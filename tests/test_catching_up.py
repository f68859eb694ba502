"""Work that is pending is done several jobs at a time, and no service holds up another."""

import gzip
import threading
import time

import pytest
from flask import g

import dispatch
import retries
from handlers.alerts import alert_on_error
from handlers.crm import update_crm
from handlers.outbound import Retry, Unavailable, post
from handlers.service import Attempt
from handlers.service import service as service_of
from stores import get_store, jobs, updates
from tests.conftest import URL, Service, message, update, wait_until


@pytest.fixture
def slack():
    slack = Service()
    yield slack
    slack.close()


@pytest.fixture
def settings(settings, service, slack):
    urls = {"CRM_WEBHOOK_URL": service.url, "SLACK_WEBHOOK_URL": slack.url}
    return settings | urls | {"RETRY_EVERY": 0.01, "UPKEEP_EVERY": 0.01, "ALERT_INTERVAL": 0}


@pytest.fixture(autouse=True)
def context(app):
    with app.app_context():
        yield


def keep_pending(count, handler="update_crm"):
    for number in range(count):
        updates.record(get_store(), update(call_id=f"call-{number}"), [handler])


def pending():
    return {each.handler: each.pending for each in jobs.backlog(get_store()) if each.pending}


class Gate:
    """How a service answers that counts who is in it, and lets them go when told."""

    def __init__(self, status=200):
        self.status, self.inside, self.most, self.lock = status, 0, [], threading.Lock()
        self.open = threading.Semaphore(0)

    def __call__(self, request):
        with self.lock:
            self.inside += 1
            self.most.append(self.inside)
        self.open.acquire(timeout=20)
        with self.lock:
            self.inside -= 1
        request.send_response(self.status)
        request.send_header("Content-Length", "0")
        request.end_headers()


def test_a_service_that_is_just_back_gets_one_request_then_two_then_four_up_to_eight(app, service):
    keep_pending(40)
    service.default = gate = Gate()
    done = []
    due_by = get_store().now()
    work = threading.Thread(target=lambda: done.extend(retries.catch_up(app, update_crm, due_by)))
    work.start()
    for inside in (1, 2, 4, 8):
        wait_until(lambda: gate.inside == inside)  # noqa: B023
        for _ in range(1 if inside == 1 else inside // 2):
            gate.open.release()
    gate.open.release(40)
    work.join()
    assert done == [True] * 40
    assert max(gate.most) == 8
    assert pending() == {}


def test_when_it_fails_again_it_gets_fewer_and_none_after_three_failures(app, service):
    keep_pending(40)
    service.answers = [(200, {}, b"")] * 3
    service.default = (503, {}, b"")
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


def test_a_service_that_hangs_takes_no_other_services_threads(app, client, service, slack):
    app.config |= {"OUTBOUND_TIMEOUT": 0.2, "PAUSE_AFTER": 10**6}
    release = threading.Event()
    service.default = lambda request: release.wait(20)
    for number in range(40):
        client.post(URL, json=message("ended-with-error", f"call-{number}", error=f"{'x' * number} failed"))
    release.set()
    assert len(slack.requests) == 40


def test_a_service_that_trickles_is_cut_off_when_its_time_is_over(app, service):
    app.config["OUTBOUND_TIMEOUT"] = 0.2
    cut = threading.Event()

    def trickle(request):
        try:
            while True:
                request.wfile.write(b"H")
                time.sleep(0.01)
        except OSError:
            cut.set()

    service.default = trickle
    with pytest.raises(Unavailable, match="no answer in time"):
        post(service.url, {})
    assert cut.wait(20)


def test_an_answer_that_our_own_deadline_would_cut_off_is_not_waited_for(app, client, service, monkeypatch):
    app.config |= {"DEADLINE": 0.6, "OUTBOUND_TIMEOUT": 0.5}
    monkeypatch.setattr(dispatch, "HANDLERS", (lambda update: time.sleep(0.2), update_crm))
    dispatch.HANDLERS[0].__name__ = "slow"
    for number in range(4):
        client.post(URL, json=message(call_id=f"call-{number}"))
    assert service.requests == []
    assert service_of("update_crm").breaker.paused_at is None
    assert list(retries.catch_up(app, update_crm, get_store().now())) == [True] * 4
    assert len(service.requests) == 4


def test_with_slack_paused_updates_without_an_error_leave_no_work(app, client, slack):
    slack.default = (503, {}, b"")
    for number in range(4):
        client.post(URL, json=message("ended-with-error", f"failed-{number}", error="x" * number))
    assert service_of("alert_on_error").breaker.paused_at is not None
    for number in range(5):
        client.post(URL, json=message("ended", f"fine-{number}"))
    assert pending() == {"alert_on_error": 4}
    assert len(slack.requests) == 3


def test_what_is_put_off_by_a_pause_says_what_the_service_answered(app, client, service):
    service.default = (502, {}, b"")
    for number in range(5):
        client.post(URL, json=message(call_id=f"call-{number}"))
    reasons = {job.error for stored in updates.since(get_store()) for job in stored.jobs}
    assert reasons == {"answered 502"}


def test_what_was_done_later_keeps_when_at_which_attempt_and_why_not_before(app, client, service, clock):
    service.answers = [(502, {}, b"")]
    client.post(URL, json=message())
    clock.now += 60
    assert dispatch.retry_one(update_crm, clock.now) is True
    [job] = updates.of_call(get_store(), "call-1")[0].jobs
    assert (job.state, job.done_at, job.attempts, job.error) == ("done", clock.now, 2, "answered 502")
    text = client.get("/calls/call-1").text
    assert "2027-01-15T08:31:00.000Z" in text and "answered 502" in text


@pytest.mark.parametrize("packed", [True, False])
def test_answers_are_read_up_to_64_kb(service, packed):
    body = gzip.compress(b"0" * 10**8) if packed else b"0" * 10**6
    service.default = (200, {"Content-Encoding": "gzip"} if packed else {}, body)
    assert len(post(service.url, {}).text) == 64 * 1024


def test_a_reason_is_kept_as_text_that_every_database_takes(monkeypatch):
    def quoting(update):
        raise Retry("a\ud800b\0")

    monkeypatch.setattr(dispatch, "HANDLERS", (quoting,))
    dispatch.dispatch(update())
    [job] = updates.of_call(get_store(), "call-1")[0].jobs
    assert job.error == "a?b"


def test_a_stop_waits_for_no_service_that_hangs(app, client, service):
    app.config |= {"OUTBOUND_TIMEOUT": 0.2, "LAST_TRY": 0.4}
    keep_pending(20)
    release = threading.Event()
    service.default = lambda request: release.wait(60)
    stop = retries.start_retrying(app)
    wait_until(lambda: service.requests)
    started = time.monotonic()
    stop()
    release.set()
    assert time.monotonic() - started < 20
    assert pending() == {"update_crm": 20}


def test_alert_on_error_asks_slack_only_for_errors():
    g.attempt = Attempt("alert_on_error", retrying=False)
    assert alert_on_error(update("ended")) is None
