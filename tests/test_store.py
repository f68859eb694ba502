"""What every store does: the contract in `stores.Store`."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from schemas.status_update import dump
from stores import Figures, Refused, Row
from tests.conftest import NOW, ROOT, update

LEASE = NOW + 60
HANDLERS = ("log_event", "update_crm")
HOUR = int(NOW // 3600 * 3600)


def record(store, *args, pending=HANDLERS, due=LEASE, **fields):
    options = {name: fields.pop(name) for name in ("leased", "failed") if name in fields}
    one = update(*args, **fields)
    return one, store.record(one, pending, due, now=NOW, **options)


def rows(store, call_id="call-1"):
    return {row.handler: row for kept in store.call(call_id)[1] for row in kept.rows}


def test_it_keeps_an_update_once(store):
    one, new = record(store)
    assert new
    assert not record(store, timestamp="2026-01-01T00:00:00Z")[1]
    assert record(store, "ended")[1]
    [first, second] = store.updates()
    assert (first.call_id, first.status, first.received_at, first.kept_at) == ("call-1", "in-progress", NOW, NOW)
    assert json.loads(first.message) == dump(one)
    assert second.status == "ended"


def test_a_recorded_update_has_a_leased_row_for_each_handler(store):
    record(store)
    assert rows(store) == {name: Row(name, LEASE) for name in HANDLERS}
    assert store.take("update_crm", LEASE - 1, LEASE + 60) is None


@pytest.fixture
def racers(store_settings):
    """Four processes of tests/race.py, ready."""
    command = [sys.executable, "tests/race.py", json.dumps({**store_settings, "CLOCK": None})]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, **pipes) for _ in range(4)]
    assert [each.stdout.readline() for each in started] == ["ready\n"] * 4
    yield started
    for each in started:
        each.communicate()


def race(racers, verb):
    """How many of 32 threads in 4 processes won when all did the verb at once."""
    for each in racers:
        print(verb, file=each.stdin, flush=True)
    return sum(int(each.stdout.readline()) for each in racers)


def test_of_many_who_record_an_update_at_once_one_is_told_that_it_is_new(store, racers):
    assert race(racers, "record") == 1
    assert race(racers, "record") == 0
    assert len(list(store.updates())) == 1


def test_of_many_who_take_a_due_row_at_once_one_gets_it(store, racers):
    record(store, pending=["log_event"])
    assert race(racers, "take") == 1
    assert rows(store)["log_event"].due == LEASE + 60


def test_a_repeat_changes_no_row(store):
    one, _ = record(store)
    store.settle(one, LEASE, HANDLERS, [])
    record(store)
    assert rows(store) == {}


def test_settling_clears_what_is_done_and_writes_what_is_not(store):
    one, _ = record(store)
    failure = Row("update_crm", NOW + 30, 1, NOW, "answered 500")
    store.settle(one, LEASE, ["log_event"], [failure])
    assert rows(store) == {"update_crm": failure}


def test_a_lease_that_ran_out_is_taken_by_another_and_fences_the_first(store):
    one, _ = record(store)
    kept, row = store.take("update_crm", LEASE, LEASE + 60)
    assert json.loads(kept.message) == dump(one)
    assert row == Row("update_crm", LEASE + 60)
    store.settle(one, LEASE, [], [Row("update_crm", None, 1, NOW, "too late")])
    assert rows(store)["update_crm"] == Row("update_crm", LEASE + 60)
    store.settle(one, LEASE, ["update_crm"], [])
    assert "update_crm" not in rows(store)


def test_the_row_due_longest_is_taken_first_and_only_of_that_handler(store):
    for call_id, due in (("b", NOW - 1), ("a", NOW - 2), ("c", NOW + 1)):
        record(store, call_id=call_id, due=due, leased=False)
    taken = [store.take("update_crm", NOW, LEASE) for _ in range(3)]
    assert [kept.call_id for kept, _ in taken[:2]] == ["a", "b"]
    assert taken[2] is None
    assert rows(store, "a")["log_event"].due == NOW - 2


def test_what_failed_is_never_taken_and_can_be_hurried(store):
    one, _ = record(store)
    store.settle(one, LEASE, ["log_event"], [Row("update_crm", None, 7, NOW, "answered 404")])
    assert store.take("update_crm", NOW * 2, LEASE) is None
    assert store.hurry(NOW) == 0
    assert store.hurry(NOW, failed=True) == 1
    assert store.take("update_crm", NOW, LEASE)[1] == Row("update_crm", LEASE, 0, None, "answered 404")


def test_hurrying_leaves_alone_what_is_leased_and_what_it_was_not_asked_for(store):
    for call_id in ("leased", "other", "asked"):
        one, _ = record(store, call_id=call_id)
        if call_id != "leased":
            store.settle(one, LEASE, [], [Row(name, NOW + 3600, 1, NOW, "x") for name in HANDLERS])
    assert store.hurry(NOW, call_id="asked", handler="update_crm") == 1
    assert rows(store, "asked")["update_crm"] == Row("update_crm", NOW, 1, NOW, "x")
    assert store.hurry(NOW) == 4
    assert {row.due for row in rows(store, "leased").values()} == {LEASE}


def test_hurrying_leaves_alone_what_was_taken(store):
    record(store, due=NOW, leased=False)
    store.take("update_crm", NOW, LEASE)
    assert store.hurry(NOW + 1) == 1
    assert rows(store)["update_crm"].due == LEASE


def test_rows_can_be_recorded_as_failed(store):
    record(store, pending=["log_event"], failed=["update_crm"], due=NOW, leased=False)
    assert rows(store)["update_crm"] == Row("update_crm", None)
    [log, crm] = store.backlog()
    assert (log.pending, log.failed, crm.pending, crm.failed) == (1, 0, 0, 1)


def test_what_was_recorded_as_failed_can_be_hurried_while_the_rest_is_leased(store):
    record(store, pending=["log_event"], failed=["update_crm"])
    assert store.hurry(NOW, failed=True) == 1
    assert rows(store) == {"log_event": Row("log_event", LEASE), "update_crm": Row("update_crm", NOW)}


def test_the_backlog_tells_the_oldest_and_the_last_error(store):
    for call_id, received_at in (("a", NOW - 50), ("b", NOW - 90)):
        one, _ = record(store, call_id=call_id, received_at=received_at)
        store.settle(one, LEASE, ["log_event"], [Row("update_crm", NOW - received_at, 1, NOW, f"error {call_id}")])
    [crm] = store.backlog()
    assert (crm.handler, crm.pending, crm.failed, crm.oldest, crm.error) == ("update_crm", 2, 0, NOW - 90, "error b")


START = "2025-12-13T12:00:00Z"
END = "2025-12-13T12:05:00Z"
LIFE = {
    "start": update("in-progress", timestamp=START, received_at=NOW),
    "ringing": update("ringing", timestamp=START, received_at=NOW - 1),
    "end": update("ended", timestamp=END, received_at=NOW + 300, end_reason="user_hangup"),
    "second end": update("ended-with-error", timestamp=START, received_at=NOW + 400, error="late"),
}


def track(store, *names):
    for name in names:
        store.track(LIFE[name])
    return store.call("call-1")[0]


def test_a_call_is_active_from_its_start_to_its_end(store):
    started = track(store, "start")
    assert store.active() == [started]
    assert (started.status, started.customer, started.line_name) == (
        "in-progress",
        "+31612345678",
        "HMS Sovereign Demo",
    )
    assert started.seconds is None
    ended = track(store, "end")
    assert store.active() == []
    assert store.recent(50) == [ended]
    assert (ended.status, ended.seconds, ended.end_reason) == ("ended", 300, "user_hangup")


@pytest.mark.parametrize(
    "order",
    [
        ("start", "end", "second end"),
        ("end", "start", "second end"),
        ("second end", "end", "start"),
        ("second end", "start", "end", "start", "second end"),
        ("ringing", "end", "start"),
        ("end", "ringing", "start"),
    ],
)
def test_updates_in_any_order_and_repeated_give_the_same_call(store, order):
    call = track(store, *order)
    assert (call.status, call.seconds, call.error, call.end_reason) == ("ended", 300, None, "user_hangup")
    assert call.received_at == (NOW - 1 if "ringing" in order else NOW)
    assert store.active() == []
    assert store.figures(NOW - 3600) == [Figures(HOUR, "ended", "", 1, 1, 300.0, NOW + 300)]


def test_an_unknown_status_neither_starts_nor_ends_a_call(store):
    assert track(store, "ringing").status == "ringing"
    assert store.active() == []
    assert track(store, "start", "ringing").status == "in-progress"
    assert len(store.active()) == 1


def test_a_duration_that_would_be_negative_is_unknown(store):
    store.track(update("in-progress", timestamp=END))
    store.track(update("ended", timestamp=START))
    assert store.call("call-1")[0].seconds is None
    assert [(each.calls, each.timed, each.seconds) for each in store.figures(0)] == [(1, 0, 0)]


def test_years_1_and_9999_can_be_kept(store):
    store.track(update("in-progress", timestamp="0001-01-01T00:00:00Z"))
    store.track(update("ended", timestamp="9999-12-31T23:59:59Z"))
    assert store.call("call-1")[0].seconds == pytest.approx(315537897599)


def test_active_and_recent_calls_are_newest_first_and_found_by_id_or_number(store):
    for index, number in enumerate(("+31600000001", "+31600000002", "+31600000001")):
        store.track(update(call_id=f"call-{index}", received_at=NOW + index, customer={"number": number}))
    assert [call.id for call in store.active()] == ["call-2", "call-1", "call-0"]
    assert [call.id for call in store.recent(2)] == ["call-2", "call-1"]
    assert [call.id for call in store.recent(50, "+31600000001")] == ["call-2", "call-0"]
    assert [call.id for call in store.recent(50, "call-1")] == ["call-1"]
    assert store.recent(50, "+3160000000") == []


def test_active_calls_are_found_by_when_they_started_and_counted(store):
    for index in range(4):
        store.track(update(call_id=f"call-{index}", received_at=NOW + index))
    assert [call.id for call in store.active(after=NOW + 1)] == ["call-3", "call-2"]
    assert [call.id for call in store.active(until=NOW + 1)] == ["call-1", "call-0"]
    assert [call.id for call in store.active(after=NOW, limit=2)] == ["call-3", "call-2"]
    assert [store.count_active(), store.count_active(after=NOW), store.count_active(until=NOW)] == [4, 3, 1]


def test_refusals_are_counted_by_the_hour_and_reason(store):
    store.count_refusals([Refused("stale", 2, HOUR + 5), Refused("unsigned", 1, HOUR + 6)])
    store.count_refusals([Refused("stale", 3, HOUR + 4), Refused("unsigned", 9, HOUR - 1)])
    assert store.refusals(HOUR + 100) == [Refused("stale", 5, HOUR + 5), Refused("unsigned", 1, HOUR + 6)]
    assert store.refusals(HOUR - 100) == [Refused("unsigned", 10, HOUR + 6), Refused("stale", 5, HOUR + 5)]
    store.prune(HOUR, 10)
    assert store.refusals(0) == [Refused("stale", 5, HOUR + 5), Refused("unsigned", 1, HOUR + 6)]


def test_figures_count_calls_by_the_hour_they_were_first_heard_of(store):
    hour = HOUR + 3600
    for index, (received_at, error) in enumerate([(hour - 1, None), (hour, "SIP 486"), (hour + 1, "SIP 486")]):
        store.track(update("in-progress", f"call-{index}", received_at, timestamp=START))
        store.track(
            update("ended-with-error" if error else "ended", f"call-{index}", hour + 9, timestamp=END, error=error)
        )
    assert sorted(store.figures(HOUR + 100), key=lambda each: each.hour) == [
        Figures(hour - 3600, "ended", "", 1, 1, 300.0, hour + 9),
        Figures(hour, "ended-with-error", "SIP 486", 2, 2, 600.0, hour + 9),
    ]
    assert [each.hour for each in store.figures(hour)] == [hour]


def test_updates_are_paged_in_the_order_they_were_kept(store, monkeypatch):
    monkeypatch.setattr(f"stores.{store.name}.PAGE", 3)
    for index in range(10):
        store.record(update(call_id=f"call-{index}", received_at=NOW - index), (), LEASE, now=NOW + index // 2)
    assert [kept.call_id for kept in store.updates()] == [f"call-{index}" for index in range(10)]
    assert [kept.call_id for kept in store.updates(NOW + 4)] == ["call-8", "call-9"]


def fail(store, call_id, error="SIP 486", pending=("alert",)):
    return record(store, "ended-with-error", call_id, error=error, pending=pending)[0]


def claim(store, update, now=NOW, handler="alert"):
    return store.claim_report(update, handler, now, 60, 5)


def test_alike_errors_are_reported_once_an_interval_with_their_number(store):
    first = fail(store, "a")
    report = claim(store, first)
    assert (report.wait, report.more) == (0, 0)
    store.settle_report(first, report, NOW)
    assert claim(store, first) is None
    later = [fail(store, f"b{number}", f"SIP {number}") for number in range(5)]
    assert {claim(store, each, NOW + 1).wait for each in later} == {59}
    report = claim(store, later[2], NOW + 60)
    assert (report.wait, report.more) == (0, 4)
    store.settle_report(later[2], report, NOW + 60)
    assert [claim(store, each, NOW + 61) for each in later] == [None] * 5


def test_different_errors_are_reported_apart(store):
    assert [claim(store, fail(store, name, name)).wait for name in ("STT failed", "LLM failed")] == [0, 0]


def test_a_report_is_claimed_by_one_until_its_lease_is_over(store):
    one, other = fail(store, "a"), fail(store, "b")
    assert claim(store, one).more == 1
    assert claim(store, other, NOW + 2).wait == 3
    assert claim(store, other, NOW + 5).more == 1


def test_what_comes_after_the_claim_is_not_covered_by_its_report(store):
    one = fail(store, "a")
    report = claim(store, one)
    late = fail(store, "b")
    store.settle_report(one, report, NOW)
    assert claim(store, late, NOW + 60).wait == 0


def test_only_what_the_handler_has_still_to_do_is_counted(store):
    settled = fail(store, "a")
    store.settle(settled, LEASE, ["alert"], [])
    fail(store, "b", pending=("update_crm",))
    assert claim(store, fail(store, "c")).more == 0


def test_an_update_that_is_not_kept_is_not_reported(store):
    assert claim(store, update("ended-with-error")) is None


def test_a_chore_is_claimed_by_one_until_its_time_is_over(store):
    assert store.claim("prune", NOW, 60)
    assert not store.claim("prune", NOW + 59, 60)
    assert store.claim("reconcile", NOW, 60)
    assert store.claim("prune", NOW + 60, 60)
    assert not store.claim("prune", NOW + 119, 60)


def test_it_is_noted_when_the_provider_was_asked_after_a_call(store):
    store.track(update())
    store.note_asked("call-1", NOW, unknown=True)
    assert (store.active()[0].asked_at, store.active()[0].unknown) == (NOW, True)
    store.note_asked("nobody", NOW, unknown=False)
    assert store.call("nobody") == (None, [])


def test_it_advises_in_sentences(store):
    store.check()
    assert all(sentence.endswith(".") for sentence in store.advice())


def test_checking_tells_when_the_last_update_was_received(store):
    assert store.check() is None
    record(store, received_at=NOW - 5)
    assert store.check() == NOW - 5


def test_forgetting_a_number_removes_that_person_and_nobody_else(store):
    for call_id, number in (
        ("plain", "+31612345678"),
        ("call-_+31612345678_abc", None),
        ("other", "+31612345679"),
        ("call-_+316123456789_abc", None),
    ):
        record(store, call_id=call_id, customer={"number": number})
    record(store, "ended", "other", phone_number={"number": "+31612345678"}, customer=None)
    assert store.forget("+31612345678") == {"calls": 2, "updates": 2, "rows": 4}
    left = {"other", "call-_+316123456789_abc"}
    assert {kept.call_id for kept in store.updates()} == left
    assert {call.id for call in store.recent(50)} == left
    assert sum(each.calls for each in store.figures(0)) == 2
    assert store.forget("+31612345678") == {"calls": 0, "updates": 0, "rows": 0}


def test_forgetting_a_short_number_leaves_alone_the_ids_that_happen_to_contain_it(store):
    record(store, call_id="5c4d030f-43e3-12345")
    record(store, "ended", "by customer", customer={"number": "12345"})
    assert store.forget("12345") == {"calls": 1, "updates": 1, "rows": 2}
    assert [kept.call_id for kept in store.updates()] == ["5c4d030f-43e3-12345"]


def test_pruning_takes_old_updates_in_batches_but_none_that_is_pending(store):
    for index in range(5):
        one, _ = record(store, call_id=f"old-{index}", received_at=NOW - 100 + index, pending=("update_crm",))
        failure = [Row("update_crm", NOW if index == 0 else None, 1, NOW, "x")] if index < 2 else []
        store.settle(one, LEASE, [] if failure else ["update_crm"], failure)
    record(store, call_id="new", received_at=NOW)
    assert store.prune(NOW, 3) == (3, 3)
    assert store.prune(NOW, 3) == (1, 1)
    assert store.prune(NOW, 3) == (0, 0)
    assert {kept.call_id for kept in store.updates()} == {"old-0", "new"}
    assert {call.id for call in store.recent(50)} == {"old-0", "new"}
    assert sum(each.calls for each in store.figures(0)) == 2
    assert [each.failed for each in store.backlog() if each.handler == "update_crm"] == [0]


def test_what_is_recorded_is_tracked_with_it(store):
    one, _ = record(store)
    assert [call.id for call in store.active()] == ["call-1"]
    store.forget(one.customer.number)
    store.track(one)  # nothing is left to do
    assert store.active() == []
    store.track(update())
    assert [call.id for call in store.active()] == ["call-1"]
    record(store)
    store.record(update("ended"), (), LEASE, now=NOW)
    assert store.record(update("ended", error="a repeat"), (), LEASE, now=NOW) is False
    assert [(call.status, call.error) for call in store.recent(1)] == [("ended", None)]


def test_what_is_kept_is_there_after_a_restart(store):
    record(store)
    store.close()
    assert [kept.call_id for kept in store.updates()] == ["call-1"]
    assert replace(store.active()[0], error=None).id == "call-1"
