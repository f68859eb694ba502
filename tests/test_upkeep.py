"""What keeps a receiver well for months."""

import json
from threading import Event

import pytest

from stores import calls, get_store, jobs, locks, retention, updates
from stores.records import Job
from tests.conftest import keep_update, settle_jobs, update, wait_until
from work import lanes, reconcile, upkeep
from work.dispatch import dispatch
from work.threads import start_retrying

HOUR = 3600.0
DAY = 24 * HOUR

pytestmark = pytest.mark.usefixtures("context")


@pytest.fixture
def settings(settings, service):
    provider = {"PROVIDER_API_URL": f"{service.url}/api/v1/", "PROVIDER_API_KEY": "key"}
    return settings | provider | {"RETRY_EVERY": 0.01, "UPKEEP_EVERY": 0.01}


def start(*call_ids):
    for call_id in call_ids:
        dispatch(update(call_id=call_id))


def start_long_ago(clock, *call_ids):
    start(*call_ids)
    clock.now += 2 * HOUR


def kept():
    return [stored.call_id for stored in updates.since(get_store())]


def tells(document):
    """An answer of the provider's API."""
    return 200, {}, json.dumps(document).encode()


STILL_ON = tells({"status": "in-progress"})


def over(status="ended", ended_at="2025-12-13T12:03:00Z", **fields):
    return tells({"status": status, "ended_at": ended_at, **fields})


def results():
    return {call.id: result for call, result in reconcile.reconcile()}


class TestReconcile:
    def test_only_calls_active_for_over_an_hour_are_asked_after(self, clock, service):
        start("call-_+31612345678/x")
        clock.now += HOUR
        assert results() == {}
        clock.now += 1
        service.default = STILL_ON
        assert results() == {"call-_+31612345678/x": "still on: in-progress"}
        [(path, headers, _)] = service.requests
        assert path == "/api/v1/calls/call-_%2B31612345678%2Fx"
        assert headers["Authorization"] == "Bearer key"

    def test_one_that_is_over_gets_its_final_update_with_its_true_end(self, clock, service):
        start_long_ago(clock, "a")
        service.default = over()
        assert results() == {"a": "ended at 2025-12-13T12:03:00.000Z"}
        call = calls.get(get_store(), "a")
        assert (call.status, call.seconds, call.customer) == ("ended", 180, "+31612345678")
        assert [each.status for each in updates.of_call(get_store(), "a")] == ["in-progress", "ended"]
        assert jobs.backlog(get_store()) == []
        assert results() == {}

    @pytest.mark.parametrize("status", ["failed", "rejected", "insufficient-credits", "ended-with-error"])
    @pytest.mark.parametrize("error", ["SIP 486", None])
    def test_one_that_failed_ends_with_the_providers_status_and_error(self, clock, service, status, error):
        start_long_ago(clock, "a")
        service.default = over(status, error=error)
        assert results() == {"a": f"{status} at 2025-12-13T12:03:00.000Z"}
        call = calls.get(get_store(), "a")
        assert (call.status, call.seconds, call.error) == (status, 180, error or status)
        assert [call.id for call in calls.active(get_store())] == []

    def test_the_end_has_the_metadata_that_the_start_had(self, clock, service):
        dispatch(update(call_id="a", assistant={"metadata": {"crm_contact_id": "77"}}))
        clock.now += 2 * HOUR
        service.default = over()
        results()
        assert updates.of_call(get_store(), "a")[-1].load().metadata == {"crm_contact_id": "77"}

    @pytest.mark.parametrize("status", ["ringing", "connecting", "transferred", "in-progress", None, "queued"])
    def test_a_status_that_does_not_end_one_changes_nothing(self, clock, service, status):
        start_long_ago(clock, "a")
        service.default = tells({"status": status, "ended_at": None})
        assert results() == {"a": f"still on: {status or 'in-progress'}"}
        assert kept() == ["a"]
        assert [call.status for call in calls.active(get_store())] == ["in-progress"]

    @pytest.mark.parametrize(
        ("status", "ends_as"), [("completed", "completed"), ("transferred", "transferred"), ("in-progress", "ended")]
    )
    def test_one_that_has_an_end_is_over_whatever_its_status(self, clock, service, status, ends_as):
        start_long_ago(clock, "a")
        service.default = over(status)
        assert results() == {"a": f"{ends_as} at 2025-12-13T12:03:00.000Z"}
        call = calls.get(get_store(), "a")
        assert (call.status, call.seconds, call.error) == (ends_as, 180, None)
        assert calls.active(get_store()) == []

    @pytest.mark.parametrize("ended_at", [5, "soon", None])
    def test_one_that_is_over_at_a_time_that_cannot_be_read_ends_now_until_its_end_comes(
        self, clock, service, ended_at
    ):
        start_long_ago(clock, "a")
        service.default = over(ended_at=ended_at)
        assert results()["a"].startswith("ended at 20")
        assert calls.get(get_store(), "a").ended_at == clock.now
        updates.count_repeat(get_store(), update("ended", "a", clock.now + 9, timestamp="2025-12-13T12:03:00Z"))
        assert calls.get(get_store(), "a").seconds == 180

    def test_one_that_ended_meanwhile_is_left_alone(self, clock, service):
        start_long_ago(clock, "a")
        store = get_store()

        def end_then_answer(request):
            keep_update(store, update("ended", "a", clock.now, timestamp="2025-12-13T12:01:00Z"), ())
            request.answer(*over())

        service.default = end_then_answer
        assert results() == {"a": "ended meanwhile"}
        assert calls.get(store, "a").seconds == 60

    def test_one_unknown_to_the_provider_is_noted_and_not_asked_after_again(self, clock, service):
        start_long_ago(clock, "a")
        service.default = 404
        assert results() == {"a": "unknown to the provider"}
        assert results() == {}
        [call] = calls.active(get_store())
        assert call.unknown

    def test_at_most_30_are_asked_after_and_the_others_next(self, clock, service):
        start_long_ago(clock, *(f"call-{number:02}" for number in range(40)))
        service.default = STILL_ON
        first, clock.now = results(), clock.now + 600
        assert len(first) == 30
        assert set(list(results())[:10]).isdisjoint(first)

    def test_asked_to_wait_it_stops(self, clock, service):
        start_long_ago(clock, "a", "b")
        service.default = (429, {"Retry-After": "60"})
        assert list(results().values()) == ["not told by the provider's API: answered 429"]
        assert len(service.requests) == 1

    @pytest.mark.parametrize("document", [[], "x", {"status": ["ended"], "ended_at": "2025-12-13T12:03:00Z"}])
    def test_an_answer_that_cannot_be_read_changes_nothing(self, clock, service, document):
        start_long_ago(clock, "a")
        service.default = tells(document)
        assert "cannot be read" in results()["a"]
        assert len(calls.active(get_store())) == 1

    def test_it_counts_as_no_handlers_request(self, app, clock, service):
        app.config |= {"CRM_WEBHOOK_URL": service.url, "AWAY_AFTER": 1}
        lanes.init_app(app)
        start_long_ago(clock, "a", "b")
        service.answers += [over(), 200, 500]  # the second is the CRM's
        assert list(results().values())[1] == "not told by the provider's API: answered 500"
        assert {lane.state for lane in lanes.get_lanes()} == {"well"}

    def test_upkeep_asks_every_10_minutes_and_only_with_a_key(self, app, clock, service):
        start_long_ago(clock, "a")
        service.default = STILL_ON
        app.config["PROVIDER_API_KEY"] = None
        upkeep.upkeep(Event())
        assert service.requests == []
        app.config["PROVIDER_API_KEY"] = "key"
        for seconds, times in ((0, 1), (599, 1), (1, 2)):
            clock.now += seconds
            upkeep.upkeep(Event())
            assert len(service.requests) == times

    def test_the_command_prints_what_it_found(self, clock, service, runner):
        start_long_ago(clock, "over", "on", "unknown")
        for call_id in ("on", "unknown"):
            clock.now += 1
            calls.note_checked(get_store(), call_id, unknown=False)
        service.answers += [over(), STILL_ON, 404]
        assert runner.invoke(args=["reconcile", "--yes"]).stdout.splitlines() == [
            "over: ended at 2025-12-13T12:03:00.000Z",
            "on: still on: in-progress",
            "unknown: unknown to the provider",
        ]
        result = runner.invoke(args=["reconcile", "--yes"])
        assert result.exit_code == 1
        assert result.stdout.startswith("on: not told by the provider's API: ")

    def test_the_command_needs_a_word_where_handlers_are_off(self, clock, service, runner):
        start_long_ago(clock, "a")
        service.default = over()
        result = runner.invoke(args=["reconcile"])
        assert result.exit_code == 1
        assert "track_call, alert_on_error, update_crm. Go on with --yes" in result.stderr
        assert len(calls.active(get_store())) == 1
        runner.invoke(args=["reconcile", "--yes"])
        assert calls.active(get_store()) == []

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

    def test_it_asks_after_calls_every_10_minutes(self, clock, service):
        service.default = over()
        clock.now += 2 * HOUR
        wait_until(lambda: calls.active(get_store()) == [])

    def test_it_prunes_once_a_day_and_logs_how_much(self, app, clock, caplog):
        caplog.set_level("INFO")
        app.config["RETENTION_DAYS"] = 2
        for day in range(3):
            wait_until(lambda: (locks.ends_at(get_store(), "prune") or 0) > clock.now)
            keep_update(get_store(), update("ended", f"day-{day}", clock.now), ())
            clock.now += DAY + 1
        wait_until(lambda: kept() == ["day-1", "day-2"])
        numbers = lambda: [record.fields["updates"] for record in caplog.records if record.message == "pruned"]  # noqa: E731
        wait_until(lambda: numbers()[-1:] == [2])  # with that of the first day


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
                keep_update(get_store(), update(call_id=f"{clock.now:.0f}", received_at=clock.now), ())
            upkeep.upkeep(Event())

        keep_update(get_store(), update(call_id="old"), ())
        for _ in range(10):
            days_pass(2.9)
        assert "old" in kept()
        return days_pass

    def test_what_is_older_than_the_retention_goes_but_for_what_a_handler_that_is_on_has_pending(
        self, days_pass, clock
    ):
        lease, store = clock.now + 1, get_store()
        for call_id, handler, state in (
            ("pending", "log_event", "pending"),
            ("failed", "log_event", "failed"),
            ("off", "update_crm", "pending"),
            ("gone", "old_handler", "pending"),
        ):
            update_id = keep_update(store, update(call_id=call_id, received_at=clock.now), [handler], lease)
            due_at = clock.now + HOUR if state == "pending" else None
            settle_jobs(store, (update_id, lease, [Job(handler, state, due_at, 9, clock.now, "answered 410")]))
        days_pass(31)
        assert {"old", "failed", "pending", "off", "gone"} & set(kept()) == {"pending"}
        assert calls.get(store, "old") is None

    def test_a_clock_that_jumps_40_days_ahead_removes_nothing_that_the_newest_update_is_near_to(self, days_pass):
        before = kept()
        days_pass(40, received=False)
        assert kept() == before

    def test_a_clock_that_jumps_back_removes_nothing_and_pruning_goes_on(self, days_pass):
        days_pass(-40)
        assert "old" in kept()
        for _ in range(42):
            days_pass(1)
        assert "old" not in kept()

    def test_a_stop_ends_it_after_the_step_in_hand(self, clock, monkeypatch):
        stopping, step = Event(), retention.prune
        monkeypatch.setattr(upkeep, "BATCH", 1)
        monkeypatch.setattr(retention, "prune", lambda *args: (stopping.set(), step(*args))[1])
        for call_id, days in (("older", 32), ("old", 31), ("new", 0)):
            keep_update(get_store(), update(call_id=call_id, received_at=clock.now - days * DAY), ())
        upkeep.prune(stopping)
        assert kept() == ["old", "new"]

    def test_a_receiver_that_receives_nothing_keeps_what_it_has(self, days_pass):
        for _ in range(9):
            days_pass(1, received=False)
        assert "old" in kept()


class TestForget:
    @pytest.fixture(autouse=True)
    def calls(self, context):
        start("a", "call-_+31612345678_x")
        dispatch(update("ended", "b", customer={"number": "+31600000000"}))

    def test_it_shows_what_it_would_remove_and_asks(self, runner):
        answer = runner.invoke(args=["forget", "06 12345678"], input="n\n")
        assert answer.exit_code == 1
        assert answer.stdout.startswith("Calls of 06 12345678: 2. Remove all that is kept of them?")
        assert kept() == ["a", "call-_+31612345678_x", "b"]
        answer = runner.invoke(args=["forget", "06 12345678"], input="y\n")
        assert answer.stdout.splitlines()[-1] == "Removed: 2 calls, 2 updates"
        assert kept() == ["b"]

    def test_it_asks_nothing_where_it_is_told_so(self, runner):
        answer = runner.invoke(args=["forget", "--yes", "b"])
        assert (answer.exit_code, answer.stdout) == (0, "Removed: 1 calls, 1 updates\n")
        assert kept() == ["a", "call-_+31612345678_x"]

    @pytest.mark.parametrize("who", ["", "+", "*", "12345678", "+31", "+31612345679", "+31*", "nobody"])
    def test_it_says_that_nothing_is_kept_and_how_much_of_a_number_it_needs(self, runner, who):
        answer = runner.invoke(args=["forget", "--yes", "--", who])
        assert answer.exit_code == 0
        assert answer.stdout == f"Nothing is kept of {who}. Give all of a number, or its last 9 digits or more.\n"
        assert len(kept()) == 3

    @pytest.mark.parametrize("who", ["", " "])
    def test_who_is_nobody_is_not_who_has_no_number(self, runner, who):
        dispatch(update("ended", "c", customer={"number": who}))
        assert "Nothing is kept" in runner.invoke(args=["forget", "--yes", who]).stdout
        assert len(kept()) == 4


class TestForgetWithASpool:
    @pytest.fixture
    def settings(self, settings, postgres):
        return settings | {"DATABASE_URL": postgres.url}

    def test_it_removes_from_the_spool_too(self, app, runner):
        store = get_store()
        keep_update(store, update("in-progress"), ["update_crm"])
        keep_update(store.spool, update("ended"), ["update_crm"])
        keep_update(store.spool, update("ended", "b", customer=None), ["update_crm"])
        answer = runner.invoke(args=["forget", "--yes", "0612345678"])
        assert answer.stdout == "Removed: 1 calls, 2 updates\n"
        assert (kept(), [stored.call_id for stored in updates.since(store.spool)]) == ([], ["b"])


@pytest.mark.parametrize(("interval", "stays"), [(60, False), (86400, True)])
def test_what_waits_for_its_alert_interval_is_not_made_due_before(app, clock, interval, stays):
    app.config["ALERT_INTERVAL"] = interval
    store, due_at = get_store(), clock.now + 86000
    update_id = keep_update(store, update(), ["alert_on_error"], clock.now + 60)
    settle_jobs(store, (update_id, clock.now + 60, [Job("alert_on_error", "pending", due_at)]))
    upkeep.upkeep(Event())
    [stored] = updates.of_call(store, "call-1")
    assert stored.jobs[0].due_at == (due_at if stays else clock.now)


def test_a_lease_that_is_taken_while_upkeep_waits_to_write_is_let_alone(app, clock):
    keep_update(get_store(), update(), ["update_crm"], clock.now + app.config["WORKER_LEASE"] + 2)
    upkeep.upkeep(Event())
    [stored] = updates.of_call(get_store(), "call-1")
    assert stored.jobs[0].state == "leased"
