"""What keeps a receiver well for months."""

import json

import pytest

import provider
import upkeep
from dispatch import dispatch
from retries import start_retrying
from stores import calls, get_store, jobs, locks, updates
from stores.records import Job
from tests.conftest import update, wait_until

HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture
def settings(settings, service):
    provider = {"PROVIDER_API_URL": f"{service.url}/api/v1/", "PROVIDER_API_KEY": "key"}
    return settings | provider | {"RETRY_EVERY": 0.01, "UPKEEP_EVERY": 0.01}


@pytest.fixture(autouse=True)
def context(app):
    with app.app_context():
        yield


def start(*call_ids):
    for call_id in call_ids:
        dispatch(update(call_id=call_id))


def knows(service, *answers):
    """What the provider's API answers, in order."""
    service.answers += [(status, headers, json.dumps(body).encode()) for status, headers, body in answers]


def found():
    return {call.id: result for call, result in provider.reconcile()}


def over(status="ended", ended_at="2025-12-13T12:03:00Z", **fields):
    return 200, {}, {"status": status, "ended_at": ended_at, **fields}


class TestReconcile:
    def test_only_calls_active_for_over_an_hour_are_asked_after(self, clock, service):
        start("call-_+31612345678/x")
        clock.now += HOUR
        assert found() == {}
        clock.now += 1
        knows(service, (200, {}, {"status": "in-progress"}))
        assert found() == {"call-_+31612345678/x": "still on"}
        [(path, headers, _)] = service.requests
        assert path == "/api/v1/calls/call-_%2B31612345678%2Fx"
        assert headers["Authorization"] == "Bearer key"

    def test_one_that_is_over_gets_its_final_update_with_its_true_end(self, app, clock, service):
        start("a")
        clock.now += 2 * HOUR
        knows(service, over())
        assert found() == {"a": "ended at 2025-12-13T12:03:00.000Z"}
        call, kept = calls.get(get_store(), "a"), updates.of_call(get_store(), "a")
        assert (call.status, call.seconds, call.customer) == ("ended", 180, "+31612345678")
        assert [each.status for each in kept] == ["in-progress", "ended"]
        assert jobs.backlog(get_store()) == []
        assert found() == {}

    @pytest.mark.parametrize(("error", "told"), [("SIP 486", "SIP 486"), (None, "failed")])
    def test_one_that_failed_is_told_with_its_error(self, clock, service, error, told):
        start("a")
        clock.now += 2 * HOUR
        knows(service, over("failed", error=error))
        assert found()["a"].startswith("ended-with-error")
        assert calls.get(get_store(), "a").error == told

    def test_one_that_ended_meanwhile_is_left_alone(self, clock, service):
        start("a")
        clock.now += 2 * HOUR
        steps = provider.reconcile()
        service.answers.append(lambda request: end_then_answer(request, over()))

        def end_then_answer(request, answer):
            updates.record(get_store_of_test, update("ended", "a", clock.now, timestamp="2025-12-13T12:01:00Z"), ())
            body = json.dumps(answer[2]).encode()
            request.send_response(200)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)

        get_store_of_test = get_store()
        assert [result for _, result in steps] == ["ended meanwhile"]
        assert calls.get(get_store(), "a").seconds == 60

    def test_one_unknown_to_the_provider_is_noted_and_not_asked_after_again(self, clock, service):
        start("a")
        clock.now += 2 * HOUR
        knows(service, (404, {}, {}))
        assert found() == {"a": "unknown to the provider"}
        assert found() == {}
        [call] = calls.active(get_store())
        assert call.unknown

    def test_at_most_30_are_asked_after_and_the_others_next(self, clock, service):
        start(*(f"call-{number:02}" for number in range(40)))
        clock.now += 2 * HOUR
        service.default = (200, {}, b'{"status": "in-progress"}')
        first, clock.now = found(), clock.now + 600
        assert len(first) == 30
        assert set(list(found())[:10]).isdisjoint(first)

    def test_asked_to_wait_it_stops_and_waits(self, clock, service):
        start("a", "b")
        clock.now += 2 * HOUR
        store = get_store()
        locks.acquire(store, "reconcile", 600)
        knows(service, (429, {"Retry-After": "900"}, {}))
        assert list(found().values()) == ["not told by the provider's API: answered 429"]
        assert locks.ends_at(store, "reconcile") == clock.now + 600 + 900

    @pytest.mark.parametrize(
        "body", [[], "x", {"status": "ended", "ended_at": 5}, {"status": "ended", "ended_at": "soon"}]
    )
    def test_an_answer_that_cannot_be_read_changes_nothing(self, clock, service, body):
        start("a")
        clock.now += 2 * HOUR
        knows(service, (200, {}, body))
        assert "cannot be read" in found()["a"]
        assert len(calls.active(get_store())) == 1

    def test_it_counts_as_no_handlers_request_even_after_it_dispatched_an_update(self, app, clock, service):
        app.config |= {"CRM_WEBHOOK_URL": service.url, "PAUSE_AFTER": 1}
        with app.app_context():  # one for all of them, as the command has
            start("a", "b")
            clock.now += 2 * HOUR
            knows(service, over(), (200, {}, {}), (500, {}, {}))
            assert list(found().values())[1] == "not told by the provider's API: answered 500"
        assert {name for name, each in app.extensions["services"].items() if each.breaker.paused_at} == {"provider"}

    def test_the_command_prints_what_it_found(self, clock, service, runner):
        start("over", "on", "unknown")
        clock.now += 2 * HOUR
        for call_id in ("on", "unknown"):
            clock.now += 1
            calls.note_checked(get_store(), call_id, unknown=False)
        knows(service, over(), (200, {}, {"status": "in-progress"}), (404, {}, {}))
        result = runner.invoke(args=["reconcile"])
        assert result.stdout.splitlines() == [
            "over: ended at 2025-12-13T12:03:00.000Z",
            "on: still on",
            "unknown: unknown to the provider",
        ]
        result = runner.invoke(args=["reconcile"])
        assert result.exit_code == 1
        assert result.stdout.startswith("on: not told by the provider's API: ")

    def test_the_command_needs_a_key(self, app, runner):
        app.config["PROVIDER_API_KEY"] = None
        result = runner.invoke(args=["reconcile"])
        assert result.exit_code == 2
        assert "PROVIDER_API_KEY" in result.output


class TestThread:
    @pytest.fixture(autouse=True)
    def retrying(self, app, context):
        start("a")
        stop = start_retrying(app)
        yield
        stop()

    def test_it_asks_after_calls_every_10_minutes(self, app, clock, service):
        service.default = (200, {}, json.dumps(over()[2]).encode())
        clock.now += 2 * HOUR
        wait_until(lambda: calls.active(get_store()) == [])

    def test_it_prunes_once_a_day_and_logs_how_much(self, clock, caplog):
        caplog.set_level("INFO")
        for day in range(31):
            wait_until(lambda: (locks.ends_at(get_store(), "prune") or 0) > clock.now)
            updates.record(get_store(), update("ended", f"day-{day}", clock.now), ())
            clock.now += 24 * HOUR + 1
        wait_until(lambda: "a" not in [stored.call_id for stored in updates.since(get_store())])
        counts = lambda: [record.fields["updates"] for record in caplog.records if record.message == "pruned"]  # noqa: E731
        wait_until(lambda: counts()[-1:] == [2])  # with that of the first day


class TestPruning:
    """What single turns of upkeep do, with a retention of 30 days."""

    @pytest.fixture
    def settings(self, settings):
        return settings | {"PROVIDER_API_KEY": None}

    @pytest.fixture
    def days_pass(self, clock):
        """That many days pass; then an update is received, and there is one turn."""

        def days_pass(days, received=True):
            clock.now += days * DAY
            if received:
                updates.record(get_store(), update(call_id=f"{clock.now:.0f}", received_at=clock.now), ())
            for _ in upkeep.upkeep(set()):
                pass

        updates.record(get_store(), update(call_id="old"), ())
        for _ in range(10):
            days_pass(2.9)
        assert self.is_kept("old")
        return days_pass

    def is_kept(self, call_id):
        return bool(updates.of_call(get_store(), call_id))

    def refusals(self, caplog):
        return sum("nothing is pruned today" in record.message for record in caplog.records)

    def test_what_is_older_than_the_retention_goes_but_for_what_is_pending(self, days_pass, clock, caplog):
        lease, store = clock.now + 1, get_store()
        pending = updates.record(store, update(call_id="pending"), ["log_event"], lease)
        failed = updates.record(store, update(call_id="failed"), ["log_event"], lease)
        jobs.settle(store, (pending, lease, [Job("log_event", "pending", clock.now + HOUR)]))
        jobs.settle(store, (failed, lease, [Job("log_event", "failed", None, 9, clock.now, "answered 404", clock.now)]))
        days_pass(1.1)
        assert [self.is_kept(name) for name in ("old", "failed", "pending")] == [False, False, True]
        assert calls.get(store, "old") is None
        assert self.refusals(caplog) == 0

    def test_a_clock_that_jumps_40_days_ahead_removes_nothing(self, days_pass, clock, caplog):
        kept = [stored.call_id for stored in updates.since(get_store())]
        days_pass(40)
        assert self.refusals(caplog) == 1
        days_pass(0.9)
        days_pass(-40.9)  # it is put right
        days_pass(0.9)
        assert [stored.call_id for stored in updates.since(get_store())][: len(kept)] == kept

    def test_a_clock_that_jumps_back_removes_nothing_and_pruning_goes_on(self, days_pass, caplog):
        days_pass(-40)
        assert self.refusals(caplog) == 1
        for _ in range(42):
            days_pass(1)
        assert not self.is_kept("old") and self.refusals(caplog) == 1

    def test_after_weeks_of_being_off_it_waits_for_another_day(self, days_pass, caplog):
        days_pass(20)
        assert self.refusals(caplog) == 1
        days_pass(0.9)
        assert self.is_kept("old")
        days_pass(0.2)
        assert not self.is_kept("old") and self.refusals(caplog) == 1

    def test_after_a_weekend_of_being_off_it_goes_on(self, days_pass, caplog):
        days_pass(2.9)
        assert not self.is_kept("old") and self.refusals(caplog) == 0

    def test_a_receiver_that_receives_nothing_keeps_what_it_has(self, days_pass):
        for _ in range(9):
            days_pass(1, received=False)
        assert self.is_kept("old")


class TestForget:
    def test_it_removes_one_person_and_says_how_much(self, runner):
        start("a", "call-_+31612345678_x")
        dispatch(update("ended", "b", customer={"number": "+31600000000"}))
        result = runner.invoke(args=["forget", "+31612345678"])
        assert result.stdout == "2 calls, 2 updates, 0 jobs removed\n"
        assert [stored.call_id for stored in updates.since(get_store())] == ["b"]

    @pytest.mark.parametrize("number", ["", "0612345678", "+", "+31*", "*"])
    def test_it_refuses_what_is_no_number(self, runner, number):
        start("a")
        assert runner.invoke(args=["forget", number]).exit_code == 2
        assert len(list(updates.since(get_store()))) == 1


@pytest.mark.parametrize(("interval", "stays"), [(60, False), (86400, True)])
def test_what_waits_for_its_alert_interval_is_not_made_due_before(app, clock, interval, stays):
    app.config["ALERT_INTERVAL"] = interval
    with app.app_context():
        store, due_at = get_store(), clock.now + 86000
        update_id = updates.record(store, update(), ["alert_on_error"], clock.now + 60)
        jobs.settle(store, (update_id, clock.now + 60, [Job("alert_on_error", "pending", due_at)]))
        list(upkeep.upkeep(set()))
        [stored] = updates.of_call(store, "call-1")
        assert stored.jobs[0].due_at == (due_at if stays else clock.now)


def test_a_lease_that_is_taken_while_upkeep_waits_to_write_is_let_alone(app, clock):
    with app.app_context():
        store = get_store()
        updates.record(store, update(), ["update_crm"], clock.now + app.config["LEASE"] + 2)
        list(upkeep.upkeep(set()))
        [stored] = updates.of_call(store, "call-1")
        assert stored.jobs[0].state == "leased"
