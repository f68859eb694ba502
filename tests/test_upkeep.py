"""What keeps a receiver well for months."""

import json

import pytest

import upkeep
from dispatch import dispatch
from stores import get_store
from tests.conftest import NOW, update, wait_until

HOUR = 3600.0


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
    return {call.id: result for call, result in upkeep.reconcile()}


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
        call, kept = get_store().call("a")
        assert (call.status, call.seconds, call.customer) == ("ended", 180, "+31612345678")
        assert [each.status for each in kept] == ["in-progress", "ended"]
        assert get_store().backlog() == []
        assert found() == {}

    @pytest.mark.parametrize(("error", "told"), [("SIP 486", "SIP 486"), (None, "failed")])
    def test_one_that_failed_is_told_with_its_error(self, clock, service, error, told):
        start("a")
        clock.now += 2 * HOUR
        knows(service, over("failed", error=error))
        assert found()["a"].startswith("ended-with-error")
        assert get_store().call("a")[0].error == told

    def test_one_that_ended_meanwhile_is_left_alone(self, clock, service):
        start("a")
        clock.now += 2 * HOUR
        steps = upkeep.reconcile()
        service.answers.append(lambda request: end_then_answer(request, over()))

        def end_then_answer(request, answer):
            get_store_of_test.track(update("ended", "a", clock.now, timestamp="2025-12-13T12:01:00Z"))
            body = json.dumps(answer[2]).encode()
            request.send_response(200)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)

        get_store_of_test = get_store()
        assert [result for _, result in steps] == ["ended meanwhile"]
        assert get_store().call("a")[0].seconds == 60

    def test_one_unknown_to_the_provider_is_noted_and_not_asked_after_again(self, clock, service):
        start("a")
        clock.now += 2 * HOUR
        knows(service, (404, {}, {}))
        assert found() == {"a": "unknown to the provider"}
        assert found() == {}
        [call] = get_store().active()
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
        assert store.claim("reconcile", clock.now, 600)
        knows(service, (429, {"Retry-After": "900"}, {}))
        assert list(found().values()) == ["not told by the provider's API: answered 429"]
        assert not store.claim("reconcile", clock.now + 899, 600)
        assert store.claim("reconcile", clock.now + 1500, 600)

    @pytest.mark.parametrize(
        "body", [[], "x", {"status": "ended", "ended_at": 5}, {"status": "ended", "ended_at": "soon"}]
    )
    def test_an_answer_that_cannot_be_read_changes_nothing(self, clock, service, body):
        start("a")
        clock.now += 2 * HOUR
        knows(service, (200, {}, body))
        assert "cannot be read" in found()["a"]
        assert len(get_store().active()) == 1

    def test_the_command_prints_what_it_found(self, clock, service, runner):
        start("over", "on", "unknown")
        clock.now += 2 * HOUR
        get_store().note_asked("on", 1, unknown=False)
        get_store().note_asked("unknown", 2, unknown=False)
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
        stop = upkeep.start_retrying(app)
        yield
        stop()

    def test_it_asks_after_calls_every_10_minutes(self, app, clock, service):
        service.default = (200, {}, json.dumps(over()[2]).encode())
        clock.now += 2 * HOUR
        wait_until(lambda: get_store().active() == [])

    def test_it_prunes_once_a_day_and_logs_how_much(self, clock, caplog):
        caplog.set_level("INFO")
        get_store().record(update("ended", "pending"), ["gone"], NOW + 10**9, now=NOW, leased=False)
        wait_until(lambda: [record for record in caplog.records if record.message == "pruned"])
        clock.now += 31 * 24 * HOUR
        wait_until(lambda: [kept.call_id for kept in get_store().updates()] == ["pending"])
        counts = lambda: [record.fields["updates"] for record in caplog.records if record.message == "pruned"]  # noqa: E731
        wait_until(lambda: counts() == [0, 1])


class TestForget:
    def test_it_removes_one_person_and_says_how_much(self, runner):
        start("a", "call-_+31612345678_x")
        dispatch(update("ended", "b", customer={"number": "+31600000000"}))
        result = runner.invoke(args=["forget", "+31612345678"])
        assert result.stdout == "2 calls, 2 updates, 0 rows removed\n"
        assert [kept.call_id for kept in get_store().updates()] == ["b"]

    @pytest.mark.parametrize("number", ["", "0612345678", "+", "+31*", "*"])
    def test_it_refuses_what_is_no_number(self, runner, number):
        start("a")
        assert runner.invoke(args=["forget", number]).exit_code == 2
        assert len(list(get_store().updates())) == 1
