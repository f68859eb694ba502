"""What the verbs of the store do, on a real SQLite file and a real PostgreSQL."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import permutations

import pytest

from schemas.status_update import dump, load_update
from schemas.strict_json import parse_json
from stores import calls, jobs, locks, refusals, retention, updates
from stores.records import Change, Job, Refused, Tally
from stores.search import Filters, find
from tests.conftest import NOW, jobs_of, keep_update, lease_next, message, recent, settle_jobs, update
from tests.race import PROCESSES, THREADS, racing

LEASE = NOW + 60
HANDLERS = ("log_event", "update_crm")
HOUR = int(NOW // 3600 * 3600)
LINE, NAME = "+31850835037", "HMS Sovereign Demo"
DAY = 24 * 3600


def record(db, *args, handlers=HANDLERS, lease=LEASE, failed=(), **fields):
    """The id of an update that was kept; None for a repeat."""
    return keep_update(db, update(*args, **fields), handlers, lease, failed)


def settled(db, *outcomes, lease=LEASE, **fields):
    """The id of an update that was kept, and of whose jobs this became."""
    update_id = record(db, lease=lease, **fields)
    settle_jobs(db, (update_id, lease, outcomes))
    return update_id


def forget(db, who):
    """Remove a person's calls; how many updates that is."""
    return retention.remove(db, retention.calls_of(db, who))


def leased(handler, until=LEASE):
    return Job(handler, "leased", until)


def done(handler):
    return Job(handler, "done", None, 1)


def failing(handler="update_crm", due_at=NOW + 30, error="answered 500"):
    return Job(handler, "pending", due_at, 1, NOW, error)


def failed(handler="update_crm"):
    return Job(handler, "failed", None, 1, NOW, "answered 404", NOW)


class TestUpdates:
    def test_it_keeps_an_update_once_and_a_repeat_changes_nothing_of_it(self, store, clock):
        settled(store, *map(done, HANDLERS))
        assert record(store, timestamp="2026-01-01T00:00:00Z") is None
        clock.now += 1
        assert record(store, "ended")
        first, second = updates.since(store)
        assert (first.call_id, first.status, first.received_at, first.kept_at) == ("call-1", "in-progress", NOW, NOW)
        assert json.loads(first.message) == dump(update())
        assert (first.load(), first.jobs) == (update(), ())
        assert (second.status, second.kept_at) == ("ended", NOW + 1)

    def test_they_are_paged_in_the_order_they_were_kept_whatever_the_clocks_say(self, store, clock, monkeypatch):
        monkeypatch.setattr(updates, "PAGE", 3)
        kept = [f"status {letter}" for letter in "jihgfedcba"]
        for status in kept:
            record(store, status, received_at=clock.now)
            clock.now -= 1
        assert [stored.status for stored in updates.since(store)] == kept
        assert [stored.status for stored in updates.of_call(store, "call-1")] == kept
        assert [stored.status for stored in updates.since(store, NOW - 1)] == kept[:2]
        assert (updates.latest(store), updates.count(store)) == (NOW, 10)

    def test_what_is_kept_is_there_after_a_restart(self, store):
        record(store)
        store.close()
        assert [stored.call_id for stored in updates.since(store)] == ["call-1"]
        assert [call.id for call in calls.active(store)] == ["call-1"]

    def test_one_is_found_by_its_id_which_no_other_ever_gets(self, store):
        gone = record(store, call_id="gone")
        forget(store, "+31612345678")
        assert record(store, call_id="next") > gone
        settle_jobs(store, (gone, LEASE, [*map(done, HANDLERS)]))  # by who was still at it when it was forgotten
        assert list(jobs_of(store, "next")) == [*HANDLERS]
        assert [stored.call_id for stored in updates.since(store)] == ["next"]

    def test_how_often_one_was_received_and_the_handlers_it_was_given_to_are_kept_with_it(self, store):
        updates.keep(store, update(), [], ["log_event"], times=3, last_received_at=NOW + 9)
        updates.keep(store, update("ended"))
        updates.count_repeat(store, update("ended", received_at=NOW + 5))
        first, second = updates.since(store)
        assert (first.handlers, first.times, first.last_received_at) == (("log_event",), 3, NOW + 9)
        assert (second.handlers, second.times, second.last_received_at) == (None, 2, NOW + 5)

    def test_checking_keeps_nothing(self, store):
        store.check()
        assert (updates.latest(store), updates.count(store)) == (None, 0)


class TestTexts:
    @pytest.mark.parametrize(
        "text",
        [
            "100% of %(now)s, %s and %%",
            ":now :handler0 a::text",
            "'; DROP TABLE calls; --",
            "\\",
            "{id} \u00e9\U0001f4de",
        ],
    )
    def test_any_is_kept_as_it_is(self, store, text):
        fields = {name: {"number": text, "name": text} for name in ("customer", "phone_number")}
        one = update(
            "ended-with-error", text, error=text, end_reason=text, assistant={"metadata": {text: text}}, **fields
        )
        settle_jobs(store, (keep_update(store, one, [text], LEASE), LEASE, [failing(text, error=text)]))
        stored, job = lease_next(store, text, LEASE, LEASE + 1)
        assert stored.load() == one
        assert (job.handler, job.error) == (text, text)
        call = calls.get(store, text)
        assert recent(store, 9, text) == [call]
        assert (call.line, call.line_name, call.customer, call.error, call.end_reason) == (text,) * 5
        assert calls.tallies(store, 0)[0].error == text
        assert locks.acquire(store, text, 60)
        assert forget(store, text) == 1

    @pytest.mark.parametrize(
        ("text", "kept"),
        [
            ("a\0b", "a\ufffdb"),
            ("a\ud800b", "a\ufffdb"),
            *((text, text) for text in ("a\tb\n\u00e9\U0001f4de\x7f/\\\"'", "\x1b[31m", "\u2028")),
        ],
    )
    def test_control_characters_are_kept_but_nuls_and_lone_surrogates_are_replaced(self, store, text, kept):
        fields = {name: {"number": text, "name": text} for name in ("customer", "phone_number")}
        fields["assistant"] = {"metadata": {"note": text, text: [text]}}
        body = json.dumps(message("ended-with-error", error=text, **fields)).encode()
        one = load_update(parse_json(body), datetime.fromtimestamp(NOW, UTC))
        keep_update(store, one, ())
        [stored] = updates.of_call(store, "call-1")
        assert (stored.load(), stored.load().metadata) == (one, {"note": kept, kept: [kept]})
        call = calls.get(store, "call-1")
        assert (call.error, call.customer, call.line_name) == (kept,) * 3
        settled(store, failing(error=text))  # whatever a service answered can be why a job was not done
        assert jobs_of(store)["update_crm"] == failing(error=kept)

    @pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
    def test_what_can_be_no_id_is_not_found(self, store, text):
        record(store)
        assert calls.get(store, text) is None
        assert recent(store, 50, text) == []
        assert updates.of_call(store, text) == []


class TestRaces:
    def test_of_many_who_do_the_same_at_once_one_wins(self, store, racing_store):
        assert racing_store("record") == 1
        assert racing_store("record") == 0
        assert updates.count(store) == 1
        assert [*jobs_of(store)] == ["log_event"]
        assert racing_store("lease") == 1
        assert jobs_of(store)["log_event"].due_at == LEASE + 60
        assert racing_store("lock") == 1
        assert racing_store("lock") == 0

    def test_of_many_who_record_an_update_of_one_call_each_nobody_loses_it(self, store, racing_store):
        assert racing_store("record a status each") == PROCESSES * THREADS
        statuses = {stored.status for stored in updates.of_call(store, "call-1")}
        assert len(statuses) == PROCESSES * THREADS
        assert calls.get(store, "call-1").status == max(statuses)
        assert racing_store("lease") == PROCESSES * THREADS
        assert racing_store("lease") == 0


@pytest.fixture
def racing_store(store_settings):
    """What `racing` gives, on a database that nobody has used: its first use is part of the race."""
    with racing(store_settings) as race:
        yield race


class TestJobs:
    def test_what_was_done_later_keeps_when_and_at_which_attempt(self, store):
        update_id = settled(store, done("log_event"), failing(due_at=NOW))
        assert jobs_of(store) == {"update_crm": failing(due_at=NOW)}
        lease_next(store, "update_crm", NOW, LEASE)
        late = Job("update_crm", "done", None, 2, NOW, "answered 500", NOW + 30)
        settle_jobs(store, (update_id, LEASE, [late]))
        assert jobs_of(store) == {"update_crm": late}
        assert jobs.backlog(store) == []

    def test_a_lease_that_ran_out_is_taken_by_another_and_fences_the_first(self, store):
        update_id = record(store)
        assert jobs_of(store) == {name: leased(name) for name in HANDLERS}
        assert lease_next(store, "update_crm", LEASE - 1, LEASE + 60) is None
        stored, job = lease_next(store, "update_crm", LEASE, LEASE + 60)
        assert (stored.load(), job) == (update(), leased("update_crm", LEASE + 60))
        settle_jobs(store, (update_id, LEASE, [failing(error="too late")]))
        assert jobs_of(store)["update_crm"] == leased("update_crm", LEASE + 60)
        late = Job("update_crm", "done", None, 1, NOW, None, NOW + 30)
        settle_jobs(store, (update_id, LEASE, [late]))  # a success counts, whoever has the lease
        assert jobs_of(store)["update_crm"] == late
        settle_jobs(store, (update_id, LEASE, [done("update_crm")]))
        assert "update_crm" not in jobs_of(store)

    def test_the_job_due_longest_then_that_kept_first_is_leased_first_and_only_of_that_handler(self, store):
        for call_id, due_at in (("b", NOW - 1), ("z", NOW - 2), ("a", NOW - 2), ("m", NOW - 2), ("c", NOW + 1)):
            settled(store, failing(due_at=due_at), call_id=call_id)
        for call_id in "zamb":
            assert lease_next(store, "update_crm", NOW, LEASE)[0].call_id == call_id
        assert lease_next(store, "update_crm", NOW, LEASE) is None
        assert jobs_of(store, "a")["log_event"] == leased("log_event")

    def test_what_failed_is_never_leased_and_can_be_retried_while_the_rest_is_leased(self, store):
        settled(store, failed())
        assert lease_next(store, "update_crm", NOW * 2, LEASE) is None
        assert [jobs.retry_now(store, name) for name in HANDLERS] == [0, 0]
        assert [jobs.retry_now(store, name, failed=True) for name in HANDLERS] == [0, 1]
        assert jobs_of(store)["log_event"] == leased("log_event")
        _, job = lease_next(store, "update_crm", NOW, LEASE)
        assert (job.attempts, job.first_tried_at, job.error) == (1, None, "answered 404")

    def test_retrying_leaves_alone_what_is_leased_and_what_it_was_not_asked_for(self, store):
        record(store, call_id="leased", lease=None)
        for name in HANDLERS:
            lease_next(store, name, NOW, LEASE)
        for call_id in ("other", "asked"):
            settled(store, *(failing(name, NOW + 3600) for name in HANDLERS), call_id=call_id)
        assert jobs.retry_now(store, "update_crm", call_id="asked") == 1
        assert jobs_of(store, "asked")["update_crm"] == failing(due_at=NOW)
        assert [jobs.retry_now(store, name) for name in HANDLERS] == [2, 2]
        assert set(jobs_of(store, "leased").values()) == {leased(name) for name in HANDLERS}

    def test_jobs_can_be_recorded_as_due_and_as_failed(self, store):
        record(store, handlers=["log_event"], failed=["update_crm"], lease=None)
        assert jobs_of(store) == {
            "log_event": Job("log_event", "pending", NOW),
            "update_crm": Job("update_crm", "failed", None),
        }
        [log, crm] = jobs.backlog(store)
        assert (log.pending, log.failed, crm.pending, crm.failed) == (1, 0, 0, 1)

    def test_the_backlog_has_the_oldest_update_the_last_error_and_the_next_try(self, store):
        for call_id, received_at in (("a", NOW - 90), ("b", NOW - 50)):
            job = failing(due_at=received_at + 99, error=f"error {call_id}")
            settled(store, done("log_event"), job, call_id=call_id, received_at=received_at)
        [crm] = jobs.backlog(store)
        assert (crm.handler, crm.pending, crm.failed) == ("update_crm", 2, 0)
        assert (crm.oldest, crm.error, crm.due_at) == (NOW - 90, "error b", NOW + 9)

    def test_only_what_a_process_whose_clock_ran_ahead_left_is_made_due(self, store, clock):
        settled(store, failing("log_event", NOW + 3600), failed(), call_id="tried")
        record(store, call_id="leased")
        right = [jobs_of(store, call_id) for call_id in ("tried", "leased")]
        clock.now += 40 * DAY
        settled(store, failing(due_at=clock.now + 30), lease=clock.now + 60)
        clock.now = NOW
        jobs.reset_far_future(store, 3600)
        assert {job.due_at for job in jobs_of(store).values()} == {NOW}
        assert lease_next(store, "log_event", NOW, LEASE)
        jobs.reset_far_future(store, 3600)
        assert [jobs_of(store, call_id) for call_id in ("tried", "leased")] == right

    def test_alike_errors_that_a_handler_has_still_to_do_are_found_and_ended_together(self, store):
        def fail(call_id, *outcomes, error="call 1486 failed", handlers=("alert", "other")):
            fields = {"status": "ended-with-error", "call_id": call_id, "error": error}
            return settled(store, *outcomes, handlers=handlers, **fields)

        one = update("ended-with-error", "one", error="call 1001 failed")
        fail("one", error="call 1001 failed")
        fail("done", done("alert"))
        fail("done later", Job("alert", "done", None, 2, NOW, "x", NOW))
        fail("failed", failed("alert"))
        fail("other", handlers=["other"])
        fail("else", error="STT failed")
        record(store, "ended", "well", handlers=["alert"])
        assert jobs.with_same_error(store, "alert", one) == []
        alike = [fail("pending", failing("alert")), fail("leased", error="call 1002 failed")]
        assert jobs.with_same_error(store, "alert", one) == alike
        late = fail("late")
        jobs.finish(store, "alert", alike)
        jobs.finish(store, "alert", [])
        assert jobs.with_same_error(store, "alert", one) == [late]
        covered, uncovered = (jobs_of(store, call_id)["alert"] for call_id in ("leased", "late"))
        assert (covered.state, covered.due_at, covered.done_at) == ("done", None, NOW)
        assert uncovered.is_open

    def test_so_many_are_leased_at_once_and_none_that_is_excluded(self, store):
        ids = [record(store, call_id=f"call-{number}", lease=None) for number in range(5)]
        leased_ids = [stored.id for stored, _ in jobs.lease_due(store, "update_crm", NOW, LEASE, 2, ids[:2])]
        assert leased_ids == ids[2:4]
        assert [stored.id for stored, _ in jobs.lease_due(store, "update_crm", NOW, LEASE, 9)] == [*ids[:2], ids[4]]

    def test_an_attempt_that_failed_is_written_with_the_change_of_its_job_and_not_by_who_lost_the_lease(self, store):
        update_id = record(store)
        failure = Change(update_id, LEASE, failing(), failed_at=NOW + 1, seconds=2.5)
        for change in (failure._replace(lease=LEASE - 1), failure, failure):
            jobs.settle(store, [change])
        assert jobs_of(store)["update_crm"] == failing()
        attempt = ("in-progress", "update_crm", NOW + 1, 2.5, "answered 500")
        assert jobs.failed_attempts(store, "call-1") == [attempt]
        forget(store, "+31612345678")
        assert store.query("SELECT * FROM attempts") == []

    def test_jobs_of_many_updates_that_were_done_at_once_go_and_their_updates_name_the_handlers(self, store):
        ids = [record(store, call_id=f"call-{number}") for number in range(3)]
        changes = [Change(id, LEASE, done(name), at_once=True) for id in ids for name in HANDLERS[: 1 + id % 2]]
        jobs.settle(store, [*changes, Change(ids[1], LEASE, failing())])
        for stored in updates.since(store):
            assert stored.handlers == HANDLERS
            assert len(stored.jobs) == 1 - stored.id % 2

    def test_what_the_store_refuses_is_told_apart_from_a_store_that_fails(self, store):
        with pytest.raises(Refused):
            updates.keep(store, update(), [Job(None, "pending", NOW)])
        assert updates.count(store) == 0


class TestLocks:
    def test_one_has_it_until_its_time_is_over(self, store, clock):
        assert locks.acquire(store, "prune", 60)
        clock.now += 59
        assert not locks.acquire(store, "prune", 60)
        assert locks.acquire(store, "reconcile", 60)
        clock.now += 1
        assert locks.acquire(store, "prune", 60)
        assert locks.ends_at(store, "prune") == clock.now + 60
        assert locks.ends_at(store, "nothing") is None

    def test_it_can_be_prolonged_and_let_go(self, store):
        locks.renew(store, "report", 60)
        assert not locks.acquire(store, "report", 5, longest=60)
        locks.renew(store, "report", 0)
        assert [locks.acquire(store, "report", seconds) for seconds in (0, 5, 5)] == [True, True, False]
        assert [locks.release(store, "report") for _ in range(2)] == [True, False]
        locks.renew(store, "report", 0)
        assert not locks.release(store, "report")  # nobody had it any more

    @pytest.mark.parametrize(("seconds", "longest"), [(DAY, None), (5, 60)])
    def test_one_that_ends_later_than_anybody_locks_it_for_is_over(self, store, clock, seconds, longest):
        """It was made before the clock was set back."""
        clock.now += 3600
        assert locks.acquire(store, "prune", seconds, longest)
        locks.renew(store, "prune", longest or seconds)
        clock.now = NOW
        assert locks.acquire(store, "prune", seconds, longest)
        assert not locks.acquire(store, "prune", seconds, longest)
        assert locks.ends_at(store, "prune") == NOW + seconds

    def test_the_processes_clocks_may_differ_by_a_second(self, store, clock):
        assert locks.acquire(store, "prune", 60)
        clock.now -= 1
        assert not locks.acquire(store, "prune", 60)


START = "2025-12-13T12:00:00Z"
END = "2025-12-13T12:05:00Z"
LATER = "2025-12-13T12:05:01Z"
BARE = {"phone_number": None, "customer": None}
LIFE = {
    "start": update("in-progress", timestamp=START, received_at=NOW),
    "ringing": update("ringing", timestamp=START, received_at=NOW - 1, **BARE),
    "end": update("ended", timestamp=END, received_at=NOW + 300, end_reason="user_hangup", **BARE),
    "second end": update("failed", timestamp=LATER, received_at=NOW + 200, error="late", end_reason="error"),
}


def track(db, *names):
    for name in names:
        keep_update(db, LIFE[name], ())
    return calls.get(db, "call-1")


class TestCalls:
    def test_one_is_active_from_its_start_to_its_end(self, store):
        started = track(store, "start")
        assert calls.active(store) == [started]
        assert calls.is_active(store, "call-1") and not calls.is_active(store, "call-1", after=NOW)
        assert (started.status, started.line_name, started.seconds) == ("in-progress", "HMS Sovereign Demo", None)
        ended = track(store, "end")
        assert calls.active(store) == [] and not calls.is_active(store, "call-1")
        assert recent(store, 50) == [ended]
        assert (ended.status, ended.seconds, ended.end_reason) == ("ended", 300, "user_hangup")

    @pytest.mark.parametrize("order", [*permutations(LIFE)])
    def test_updates_in_any_order_give_the_same_call(self, store, order):
        call = track(store, *order)
        assert (call.status, call.seconds, call.error, call.end_reason) == ("ended", 300, None, "user_hangup")
        assert (call.received_at, call.customer, call.line) == (NOW - 1, "+31612345678", "+31850835037")
        assert calls.active(store) == []
        assert calls.tallies(store, NOW - 3600) == [Tally(LINE, NAME, None, 1, 1, 300.0, NOW - 1)]

    @pytest.mark.parametrize("statuses", [("ended", "ended-with-error"), ("queued", "ringing")])
    def test_updates_received_at_once_give_the_same_call_in_any_order(self, store, statuses):
        for call_id, order in (("one", statuses), ("other", statuses[::-1])):
            for status in order:
                record(store, status, call_id, error=status, end_reason=status, timestamp=START)
        one, other = (calls.get(store, call_id) for call_id in ("one", "other"))
        assert one == other._replace(id="one")

    def test_an_unknown_status_neither_starts_nor_ends_one_nor_stands_once_it_has_begun(self, store):
        assert track(store, "ringing").status == "ringing"
        assert calls.active(store) == []
        track(store, "start")
        record(store, "transferred", received_at=NOW + 9)
        assert [call.status for call in calls.active(store)] == ["in-progress"]
        track(store, "end")
        record(store, "billed", received_at=NOW + 999)
        assert calls.get(store, "call-1").status == "ended"

    def test_of_several_unknown_statuses_the_latest_stands(self, store):
        for status, received_at in (("queued", NOW + 2), ("ringing", NOW), ("connecting", NOW + 1)):
            record(store, status, received_at=received_at)
        assert calls.get(store, "call-1").status == "queued"

    @pytest.mark.parametrize("status", ["failed", "rejected", "insufficient-credits", "ended-with-error"])
    def test_any_status_of_an_error_ends_one_with_that_error(self, store, status):
        record(store, timestamp=START)
        record(store, status, timestamp=END, error="SIP 480", end_reason="sip_error")
        call = calls.get(store, "call-1")
        assert (call.status, call.seconds, call.error, call.end_reason) == (status, 300, "SIP 480", "sip_error")
        assert calls.active(store) == []
        assert calls.tallies(store, 0) == [Tally(LINE, NAME, "SIP 480", 1, 1, 300.0, NOW)]
        assert [call.id for call in find(store, Filters(status="ended-with-error", error="SIP 480")).calls] == [
            "call-1"
        ]
        assert find(store, Filters(status="other")).calls == []

    @pytest.mark.parametrize("reverse", [False, True])
    @pytest.mark.parametrize(
        ("ended", "failed", "stands"),
        [
            (END, LATER, "ended"),
            (LATER, END, "failed"),
            (END, END, "failed"),
            (LATER, "soon", "ended"),
            ("soon", LATER, "failed"),
            (None, None, "ended"),
        ],
    )
    def test_of_two_ends_the_earlier_stands_whole_and_a_time_that_cannot_be_read_is_the_later(
        self, store, reverse, ended, failed, stands
    ):
        finals = [("ended", NOW + 1, ended, "user_hangup"), ("failed", NOW + 2, failed, "sip_error")]
        for status, received_at, timestamp, end_reason in finals[::-1] if reverse else finals:
            fields = {"timestamp": timestamp, "error": "SIP 480", "end_reason": end_reason}
            record(store, status, received_at=received_at, **fields)
        call = calls.get(store, "call-1")
        errors = {"ended": (None, "user_hangup"), "failed": ("SIP 480", "sip_error")}
        assert (call.status, (call.error, call.end_reason)) == (stands, errors[stands])
        read_at = update(timestamp={"ended": ended, "failed": failed}[stands], received_at=NOW + 1).timestamp
        assert call.ended_at == read_at.timestamp()

    def test_a_late_start_fills_in_when_one_began_and_makes_none_active(self, store):
        record(store, "rejected", timestamp=END)
        record(store, timestamp=START)
        call = calls.get(store, "call-1")
        assert (call.status, call.seconds) == ("rejected", 300)
        assert calls.active(store) == []

    def test_a_repeat_adds_what_is_new_in_it_to_the_call_and_not_to_the_message(self, store):
        first = update("failed", timestamp=END, customer=None)
        keep_update(store, first, ())
        updates.count_repeat(
            store, update("failed", timestamp=LATER, received_at=NOW + 9, error="SIP 480", end_reason="busy")
        )
        call = calls.get(store, "call-1")
        assert (call.error, call.end_reason, call.customer) == ("SIP 480", "busy", "+31612345678")
        assert (call.ended_at, call.received_at) == (first.timestamp.timestamp(), NOW)
        assert [stored.load() for stored in updates.of_call(store, "call-1")] == [first]

    @pytest.mark.parametrize("name", ["start", "end"])
    def test_a_repeat_of_what_is_known_changes_nothing(self, store, name):
        track(store, *LIFE)
        before = store.query("SELECT * FROM calls")
        updates.count_repeat(store, replace(LIFE[name], received_at=datetime.fromtimestamp(NOW + 999, UTC)))
        assert store.query("SELECT * FROM calls") == before

    def test_a_repeat_of_what_is_not_kept_makes_no_call(self, store):
        updates.count_repeat(store, update())
        assert recent(store) == []

    def test_a_repeat_changes_nothing_and_what_was_forgotten_can_come_again(self, store):
        track(store, "start", "end")
        before = track(store, "end", "start")
        assert record(store, "ended", error="a repeat", end_reason="a repeat", received_at=NOW - 9) is None
        assert recent(store, 9) == [before]
        forget(store, "+31612345678")
        assert recent(store, 9) == []
        assert [track(store, "start")] == calls.active(store)

    def test_the_years_2002_and_2285_can_be_kept(self, store):
        record(store, "in-progress", timestamp="2002-01-01T00:00:00Z")
        record(store, "ended", timestamp="2285-12-31T23:59:59Z")
        assert calls.get(store, "call-1").seconds == 8962185599

    def test_a_duration_that_would_be_negative_is_unknown(self, store):
        record(store, "in-progress", timestamp=END)
        record(store, "ended", timestamp=START)
        assert calls.get(store, "call-1").seconds is None
        assert calls.tallies(store, 0) == [Tally(LINE, NAME, None, 1, 0, 0.0, NOW)]

    def test_one_is_not_found_by_the_first_digits_of_its_number(self, store):
        record(store, customer={"number": "+31600000001"})
        assert [len(recent(store, 50, search)) for search in ("+31600000001", "+3160000000")] == [1, 0]

    def test_active_ones_are_found_by_when_they_started_and_counted(self, store):
        for index in range(4):
            record(store, call_id=f"call-{index}", received_at=NOW + index)
        assert [call.id for call in calls.active(store, after=NOW + 1)] == ["call-3", "call-2"]
        assert [call.id for call in calls.active(store, until=NOW + 1)] == ["call-1", "call-0"]
        assert [call.id for call in calls.active(store, after=NOW, limit=2)] == ["call-3", "call-2"]
        assert calls.count_active(store) == 4
        assert [calls.count_active(store, after=NOW), calls.count_active(store, until=NOW)] == [3, 1]

    def test_they_are_counted_by_line_and_error_when_they_were_first_heard_of(self, store):
        outcomes = [("ended", None), ("ended-with-error", "SIP 486"), ("ended-with-error", "SIP 486")]
        for index, (status, error) in enumerate(outcomes):
            record(store, "in-progress", f"call-{index}", HOUR + index, timestamp=START)
            record(store, status, f"call-{index}", HOUR + 9, timestamp=END, error=error)
        record(store, "rejected", "no line", HOUR + 3, phone_number=None)
        record(store, "ringing", "renamed", HOUR + 4, phone_number={"number": LINE, "name": "Front desk"})
        expected = [
            Tally(LINE, NAME, None, 2, 1, 300.0, HOUR + 4),
            Tally(LINE, NAME, "SIP 486", 2, 2, 600.0, HOUR + 2),
            Tally(None, None, "", 1, 0, 0.0, HOUR + 3),
        ]
        assert sorted(calls.tallies(store, HOUR), key=repr) == sorted(expected, key=repr)
        assert calls.tallies(store, HOUR + 4) == [Tally(LINE, "Front desk", None, 1, 0, 0.0, HOUR + 4)]
        assert calls.tallies(store, HOUR, HOUR + 1) == [Tally(LINE, NAME, None, 1, 1, 300.0, HOUR)]
        assert calls.tallies(store, HOUR + 5, HOUR + 9) == []

    def test_the_digits_of_one_are_of_the_customer_that_stands(self, store):
        def kept():
            return store.query("SELECT customer, digits FROM calls")[0]

        record(store, customer=None)
        assert kept() == (None, None)
        for status, customer, expected in (
            ("ringing", "sip:bob7@10.0.0.1", ("sip:bob7@10.0.0.1", "7")),
            ("ended", "+31 (0)6 1234-5678", ("+31 (0)6 1234-5678", "31612345678")),
            ("billed", "anonymous", ("+31 (0)6 1234-5678", "31612345678")),
            ("billed 2", "(202) 555-0143", ("(202) 555-0143", "2025550143")),
        ):
            record(store, status, customer={"number": customer})
            assert kept() == expected

    def test_it_is_noted_when_one_was_checked_with_the_provider(self, store):
        record(store)
        calls.note_checked(store, "call-1", unknown=True)
        [call] = calls.active(store)
        assert (call.checked_at, call.unknown) == (NOW, True)
        calls.note_checked(store, "nobody", unknown=False)
        assert calls.get(store, "nobody") is None


class TestRetention:
    def test_forgetting_a_number_removes_that_person_and_nobody_else(self, store):
        for call_id, number in (
            ("plain", "+31612345678"),
            ("call-_+31612345678_abc", None),
            ("other", "+31612345679"),
            ("call-_+316123456789_abc", None),
        ):
            record(store, call_id=call_id, customer={"number": number})
        record(store, "ended", "other", phone_number={"number": "+31612345678"}, customer=None)
        assert forget(store, "+31612345678") == 2
        left = {"other", "call-_+316123456789_abc"}
        assert {stored.call_id for stored in updates.since(store)} == left
        assert {call.id for call in recent(store, 50)} == left
        assert forget(store, "+31612345678") == 0

    @pytest.mark.parametrize(
        ("who", "expected"),
        [
            ("+12025550177", ["e164", "id +12025550177", "national", "sip", "spaced"]),
            ("(202) 555-0177", ["e164", "id +12025550177", "national", "sip", "spaced"]),
            ("001 202 555 0177", ["e164", "id +12025550177", "national", "sip", "spaced"]),
            ("sip:+12025550177@elsewhere", ["e164", "id +12025550177", "national", "sip", "spaced"]),
            ("025550177", ["e164", "id +12025550177", "national", "sip", "spaced"]),
            ("25550177", []),
            ("12345", ["short", "short sip"]),
            ("2345", []),
            ("sip:12345@pbx", ["short sip"]),
            ("alice", ["alice", "named"]),
            ("sip:alice@example.com", ["alice"]),
            ("example.com", []),
            ("anonymous", ["anonymous"]),
            ("anonym", []),
            ("id +12025550177", ["id +12025550177"]),
            ('100%_\\"\u00e9\t', ["odd"]),
            ("%", []),
        ],
    )
    def test_a_person_is_found_in_any_form_that_was_sent(self, store, who, expected):
        for call_id, number in (
            ("e164", "+12025550177"),
            ("national", "(202) 555-0177"),
            ("spaced", "001 202 555 0177"),
            ("sip", "sip:+12025550177@sip.example.com"),
            ("id +12025550177", None),
            ("neighbour", "+12025550178"),
            ("id 5c4d030f-43e3-12345", None),
            ("short", "12345"),
            ("short sip", "sip:12345@pbx"),
            ("alice", "sip:alice@example.com"),
            ("named", '"Alice" <sips:alice@10.0.0.1:5061>'),
            ("anonymous", "anonymous"),
            ("odd", '100%_\\"\u00e9\t'),
        ):
            record(store, call_id=call_id, customer={"number": number})
        assert sorted(retention.calls_of(store, who)) == expected

    @pytest.mark.parametrize("number", ["+31 6 22222222", "\u00e9\t\\\"%_'", "2\\"])
    def test_a_customer_whom_only_one_update_of_a_call_names_is_forgotten(self, store, number):
        record(store, customer={"number": "+31611111111"})
        record(store, "ended", customer={"number": number})
        store.execute("UPDATE calls SET customer = '+31611111111', digits = '31611111111'")
        record(store, call_id="other", customer={"number": f"{number}1"})
        assert forget(store, number) == 2

    def test_a_customer_whom_no_update_names_any_more_is_forgotten(self, store):
        record(store, "in-progress", received_at=NOW - 100, customer={"number": "06 22222222"}, handlers=())
        record(store, "ended", customer=None)
        retention.prune(store, NOW, 9)
        assert forget(store, "+31622222222") == 1

    def test_forgetting_many_calls_takes_all_of_them(self, store):
        for index in range(8):
            record(store, call_id=f"call-{index}")
        ids = retention.calls_of(store, "+31612345678")
        assert retention.remove(store, ids) == 8
        assert retention.remove(store, ids) == 0
        assert store.query("SELECT * FROM jobs") == []

    def test_pruning_takes_old_updates_in_batches_but_none_that_a_handler_that_is_on_has_pending(self, store):
        for index in range(5):
            job = {0: failing(due_at=NOW), 1: failed()}.get(index, done("update_crm"))
            settled(store, job, call_id=f"old-{index}", received_at=NOW - 100 + index, handlers=["update_crm"])
        settled(store, failing("off", NOW), call_id="off", received_at=NOW - 1, handlers=["off"])
        record(store, call_id="new", received_at=NOW)
        assert [retention.prune(store, NOW, 3, ["update_crm"]) for _ in range(3)] == [(3, 3), (2, 2), (0, 0)]
        assert {stored.call_id for stored in updates.since(store)} == {"old-0", "new"}
        assert {call.id for call in recent(store, 50)} == {"old-0", "new"}
        assert calls.count(store) == 2
        assert [each.failed for each in jobs.backlog(store) if each.handler == "update_crm"] == [0]

    def test_a_call_goes_with_the_last_of_its_updates(self, store):
        record(store, "in-progress", received_at=NOW - 100, handlers=())
        record(store, "ended", received_at=NOW, handlers=())
        assert retention.prune(store, NOW, 9) == (1, 0)
        assert calls.get(store, "call-1").status == "ended"
        assert retention.prune(store, NOW + 1, 9) == (1, 1)
        assert calls.get(store, "call-1") is None

    def test_pruning_takes_locks_that_ended_before(self, store):
        locks.renew(store, "old", -1)
        locks.renew(store, "new", 0)
        retention.prune(store, NOW, 9)
        assert (locks.ends_at(store, "old"), locks.ends_at(store, "new")) == (None, NOW)


def test_refusals_are_counted_by_the_hour_and_reason(store):
    refusals.add(store, "stale", 2, HOUR + 4)
    refusals.add(store, "unsigned", 1, HOUR + 6)
    refusals.add(store, "stale", 3, HOUR + 5)
    refusals.add(store, "unsigned", 9, HOUR - 1)
    for moment in (HOUR, HOUR + 100):
        assert refusals.since(store, moment) == [("stale", 5, HOUR + 5), ("unsigned", 1, HOUR + 6)]
    for moment in (HOUR - 1, HOUR - 100):
        assert refusals.since(store, moment) == [("unsigned", 10, HOUR + 6), ("stale", 5, HOUR + 5)]
    retention.prune(store, HOUR, 10)
    assert refusals.since(store, 0) == [("stale", 5, HOUR + 5), ("unsigned", 1, HOUR + 6)]


@pytest.mark.parametrize(("reason", "latest"), [(None, NOW), ("a\ud800b", NOW), ("stale", None), ("stale", 2**70)])
def test_a_row_that_the_database_takes_never_is_refused_and_ends_nothing(store, reason, latest):
    store.check()
    insert = "INSERT INTO refusals (hour, reason, times, latest) VALUES (0, :reason, CAST(:latest AS BIGINT), 0)"
    with pytest.raises(Refused, match=r"calls\.db: |127\.0\.0\.1:[0-9]+: "):
        store.execute(insert, {"reason": reason, "latest": latest})
    assert store.failure == ""
    assert refusals.since(store, 0) == []
    assert record(store)


def test_a_transaction_that_raises_changes_nothing(store):
    with pytest.raises(ZeroDivisionError), store.transaction() as execute:
        execute("INSERT INTO locks VALUES ('x', 0)")
        _ = 1 / 0
    assert locks.ends_at(store, "x") is None
