"""Work that is pending is done by a worker for each lane, in one process and with real services."""

import threading
from contextlib import closing
from functools import partial
from unittest.mock import DEFAULT, Mock

import pytest

from stores import StoreError, get_store, jobs, updates
from tests.conftest import NOW, URL, Service, catch_up, jobs_of, keep_update, message, update, wait_until
from work import lanes, settling, threads
from work.lanes import PLACES, get_lane

pytestmark = pytest.mark.usefixtures("context")


@pytest.fixture
def slack():
    with closing(Service()) as slack:
        yield slack


@pytest.fixture
def settings(settings, service, slack):
    urls = {"CRM_WEBHOOK_URL": service.url, "SLACK_WEBHOOK_URL": slack.url}
    return settings | urls | {"RETRY_EVERY": 0.01, "UPKEEP_EVERY": 0.01, "ALERT_INTERVAL": 0}


@pytest.fixture
def start(app):
    """Start the process's threads, in the test; they end with it. Gives what ends them."""
    stops = []

    def start():
        stops.append(threads.start_retrying(app))
        return stops[-1]

    yield start
    for stop in stops:
        stop()


def keep_pending(count):
    for number in range(count):
        keep_update(get_store(), update(call_id=f"call-{number}"), ["update_crm"])


def post_calls(client, *names, status="in-progress", **fields):
    for name in names:
        assert client.post(URL, json=message(status, name, **fields)).data == b"OK"


def pending():
    return {backlog.handler: backlog.pending for backlog in jobs.backlog(get_store()) if backlog.pending}


def job(call_id="call-1"):
    """The CRM's job of a call's update; None where there is none, or none any more."""
    return jobs_of(get_store(), call_id).get("update_crm")


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


def test_a_service_gets_one_request_then_twice_as_many_once_all_have_succeeded_up_to_16(app, service):
    keep_pending(80)
    service.default = gate = Gate()
    thread = threading.Thread(target=with_context, args=(app, catch_up))
    thread.start()
    for inside in (1, 2, 4, 8, 16):
        wait_until(lambda: gate.inside == inside)  # noqa: B023
        gate.open.release(inside if inside < 16 else 80)
    thread.join()
    assert gate.most == PLACES == 16
    assert [stored.jobs[0].attempts for stored in updates.since(get_store())] == [1] * 80
    assert pending() == {}


def with_context(app, function):
    with app.app_context():
        return function(app)


def test_one_that_takes_its_time_holds_up_no_other(app, service, hanging, start):
    keep_pending(1)
    app.config["WORKER_PATIENCE"] = (0.01, 0.01)  # of which it takes more, as a service does that trickles its headers
    service.answers[0] = lambda request: (hanging.arrived.set(), hanging.release.wait(20), request.answer())
    lane = get_lane("update_crm")
    lane.handler = lambda update: (hanging.arrived.set(), hanging.release.wait(20)) if update.call.id == "call-0" else 0
    start()
    assert hanging.arrived.wait(20)
    keep_update(get_store(), update(call_id="another"), ["update_crm"])
    wait_until(lambda: job("another").state == "done")
    assert job("call-0").state == "leased"
    hanging.release.set()
    wait_until(lambda: job("call-0").state == "done")


def test_when_it_fails_it_gets_fewer_and_none_after_three_failures(app, service):
    keep_pending(40)
    service.answers, service.default = [200] * 3, 503
    catch_up(app)
    tried = [job for stored in updates.since(get_store()) for job in stored.jobs if job.attempts]
    assert [job.state for job in tried].count("done") == 3
    assert 3 + 3 <= len(tried) <= 3 + 3 + 4  # those under way when the third failed
    assert get_lane("update_crm").state == "away"
    assert len(service.requests) == len(tried)


def test_only_one_request_asks_a_service_that_is_away_and_a_success_ends_that(app, service, clock, monkeypatch):
    keep_pending(20)
    service.default = 503
    catch_up(app)
    number = len(service.requests)
    lane = get_lane("update_crm")
    catch_up(app)
    assert len(service.requests) == number
    lane.ask_now()
    clock.now += 31
    catch_up(app)
    assert len(service.requests) == number + 1
    service.default = 200
    lane.ask_now()
    clock.now += 31
    catch_up(app)
    assert (pending(), lane.state) == ({}, "well")


def test_a_job_of_a_service_that_is_away_is_due_when_it_is_asked_next(app, service, clock):
    service.default = (429, {"Retry-After": "90"})
    keep_pending(2)
    catch_up(app)
    assert len(service.requests) == 1
    assert job("call-0").due_at == pytest.approx(clock.now + 90, abs=5)
    assert job("call-1").due_at == clock.now


def test_an_alert_is_not_behind_the_backlog_of_the_crm(service, slack, start):
    keep_pending(30)
    service.default = gate = Gate()
    keep_update(get_store(), update("ended-with-error", "failed", error="boom"), ["alert_on_error"])
    start()
    wait_until(lambda: slack.requests)
    assert pending()["update_crm"] > 20
    gate.open.release(100)
    wait_until(lambda: pending() == {})


def test_with_slack_away_updates_without_an_error_leave_no_work(client, slack):
    slack.default = 503
    for number in range(4):
        post_calls(client, f"failed-{number}", status="ended-with-error", error="boom" + "x" * number)
    assert get_lane("alert_on_error").state == "away"
    post_calls(client, *"abcde", status="ended")
    assert pending() == {"alert_on_error": 4}
    assert len(slack.requests) == 3


def test_what_a_request_has_no_patience_for_is_done_by_the_worker_with_more(app, client, service, start, hanging):
    app.config["REQUEST_PATIENCE"] = (0.2, 0.2)
    post_calls(client, "a", "b")
    assert hanging.arrived.is_set()
    assert len(service.requests) == 1
    assert "patience" in job("a").error
    assert [(job(name).attempts, job(name).due_at) for name in "ab"] == [(1, NOW), (0, NOW)]
    hanging.release.set()
    start()
    wait_until(lambda: pending() == {})
    assert [body["call_id"] for body in service.bodies] == ["a", "a", "b"]
    wait_until(lambda: get_lane("update_crm").state == "well")
    post_calls(client, "c")
    assert service.bodies[-1]["call_id"] == "c"


def test_a_message_that_can_no_longer_be_read_fails_its_job_with_the_reason(app):
    keep_update(get_store(), update(), ["update_crm"])
    get_store().execute("UPDATE updates SET message = '[]'")
    catch_up(app)
    assert job().state == "failed"
    assert "cannot be read" in job().error


def test_a_job_that_ends_unexpectedly_is_let_go_and_done_again_when_its_lease_ends(app, service, clock, caplog):
    keep_pending(2)
    lane, change = get_lane("update_crm"), lanes.Lane.change
    lane.change = Mock(side_effect=[RuntimeError("bug"), *[DEFAULT] * 9], wraps=partial(change, lane))
    catch_up(app)
    assert [job(name).state for name in ("call-0", "call-1")] == ["leased", "done"]
    assert (lane.running, lane.in_hand) == ({}, set())
    assert "done again when its lease ends" in caplog.text
    clock.now += 121
    catch_up(app)
    assert job("call-0").state == "done"


def test_what_this_process_has_in_hand_is_not_leased_again_even_when_its_lease_ran_out(app, clock):
    keep_pending(2)
    lane = get_lane("update_crm")
    [(stored, _)] = jobs.lease_due(get_store(), lane.name, clock.now, clock.now + 120, 1)
    lane.in_hand.add(stored.id)
    clock.now += 121
    catch_up(app)
    assert (job("call-0").state, job("call-1").state) == ("leased", "done")
    lane.in_hand.discard(stored.id)
    catch_up(app)
    assert job("call-0").state == "done"


def test_a_handler_that_is_off_keeps_its_work_until_it_is_on(app, client, start):
    keep_pending(5)
    keep_update(get_store(), update(call_id="gone"), ["old_handler"])
    app.config["CRM_WEBHOOK_URL"], url = None, app.config["CRM_WEBHOOK_URL"]
    lanes.init_app(app)
    stop = start()
    post_calls(client, "a")
    wait_until(lambda: job("a") is None)
    stop()
    assert pending() == {"update_crm": 5, "old_handler": 1}
    app.config["CRM_WEBHOOK_URL"] = url
    lanes.init_app(app)
    catch_up(app)
    wait_until(lambda: pending() == {"old_handler": 1})


def test_what_a_request_leaves_is_taken_up_without_waiting_for_the_workers_next_look(app, client, service, start):
    app.config |= {"RETRY_EVERY": 120.0, "REQUEST_PATIENCE": (0.1, 0.1)}
    service.answers = [lambda request: None]  # which is never answered
    start()
    post_calls(client, "a")
    wait_until(lambda: len(service.requests) == 2)
    wait_until(lambda: job("a").state == "done")


class TestThreads:
    def test_they_are_started_once_a_process(self, start):
        assert start() == start()
        assert [thread.name for thread in threading.enumerate()].count("work-update_crm") == 1

    def test_they_do_what_is_due_even_after_the_store_failed(self, client, service, clock, start, tmp_path, caplog):
        service.answers.append(500)
        post_calls(client, "a")
        path, away = tmp_path / "calls.db", tmp_path / "away"
        get_store().close()
        path.rename(away)
        path.symlink_to(tmp_path)  # a folder, and one that a file can replace in one step
        clock.now += 40
        start()
        wait_until(lambda: "work waits for the store" in caplog.text)
        away.replace(path)
        wait_until(lambda: job("a").state == "done")

    def test_what_requests_did_is_written_soon_and_a_stop_waits_for_it(self, client, start, monkeypatch):
        sizes, goes_on, settle = [], threading.Event(), jobs.settle

        def slow(store, changes):
            goes_on.wait(20)
            sizes.append(len(changes))
            settle(store, changes)

        monkeypatch.setattr(jobs, "settle", slow)
        stop = start()
        post_calls(client, "a")
        assert job("a").state == "leased"
        post_calls(client, *"bcd")
        goes_on.set()
        stop()
        assert sum(sizes) == 8 and len(sizes) <= 4
        assert [job(name) for name in "abcd"] == [None] * 4

    def test_what_was_done_is_written_again_and_again_until_it_is(self, client, service, start, monkeypatch, caplog):
        settle, failing = jobs.settle, Mock(side_effect=StoreError("calls.db: disk full"))
        monkeypatch.setattr(jobs, "settle", failing)
        start()
        post_calls(client, "a")
        wait_until(lambda: failing.call_count > 3)
        monkeypatch.setattr(jobs, "settle", settle)
        wait_until(lambda: job("a") is None)
        assert caplog.text.count("work waits for the store") == 1
        assert len(service.requests) == 1

    def test_however_long_the_store_is_away_no_batch_grows_without_end(self, app, client, monkeypatch):
        sizes = []
        monkeypatch.setattr(settling, "MOST_AT_ONCE", 3)
        monkeypatch.setattr(jobs, "settle", Mock(side_effect=StoreError("calls.db: disk full")))
        settling.open_queue(app)
        for number in range(9):
            post_calls(client, f"call-{number}")
            with pytest.raises(StoreError):
                settling.write_next()
            sizes.append(len(jobs.settle.call_args.args[1]))
        assert max(sizes) <= 4

    def test_what_the_store_refuses_to_write_is_logged_and_holds_up_nothing_else(self, caplog):
        get_store().check()
        refuse = "BEGIN SELECT RAISE(ABORT, 'refused'); END"
        get_store().execute(
            "CREATE TRIGGER refuse BEFORE UPDATE ON jobs WHEN old.update_id ="
            f" (SELECT id FROM updates WHERE call_id = 'bad') {refuse}"
        )
        get_lane("update_crm").handler = Mock(side_effect=ValueError("bug"))
        for name in ("bad", "good"):
            keep_update(get_store(), update(call_id=name), ["update_crm"], NOW - 1)
        lane = get_lane("update_crm")
        stored_updates = updates.since(get_store())
        settling.settle([lane.call(stored.load(), stored.id, stored.jobs[0]) for stored in stored_updates])
        assert (job("bad").state, job("good").state) == ("leased", "pending")
        assert "not written" in caplog.text

    def test_a_stop_leases_nothing_more_and_waits_for_what_is_in_hand(self, service, start, hanging, caplog):
        keep_pending(3)
        stop = start()
        assert hanging.arrived.wait(20)
        stopped = threading.Thread(target=stop)
        stopped.start()
        hanging.release.set()
        stopped.join()
        assert [body["call_id"] for body in service.bodies] == ["call-0"]
        assert job("call-0").state == "done"
        [record] = [record for record in caplog.records if record.message == "stopped with work pending"]
        assert record.fields == {"update_crm": 2}

    def test_a_stop_waits_for_no_service_that_hangs_longer_than_it_may(self, app, service, start, hanging):
        app.config["STOP"] = 0.2
        keep_pending(1)
        stop = start()
        assert hanging.arrived.wait(20)
        stop()
        assert job("call-0").state == "leased"
        hanging.release.set()
        wait_until(lambda: job("call-0").state == "done")  # by the thread that a process's end would have ended


def test_a_request_that_waits_in_vain_is_no_failure(app, client, service):
    app.config["REQUEST_PATIENCE"] = (0.1, 0.1)
    service.default = gate = Gate()
    lane = get_lane("update_crm")
    post_calls(client, *"abc")
    assert (lane.state, lane.reason) == ("slow", "no answer yet: it is asked again with more patience")
    gate.open.release(9)
