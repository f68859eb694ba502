"""What the receiver tells Slack about itself."""

from contextlib import closing

import pytest

from app import create_app
from handlers.http import Unavailable
from handlers.service import service as service_of
from stores import get_store, jobs, refusals, updates
from stores.records import Job, RefusalCount
from tests.conftest import NOW, URL, free_port, message, update
from work.reports import report_troubles

HOUR = 3600.0
LEASE = NOW + 60


@pytest.fixture
def settings(settings, service):
    return settings | {"SLACK_WEBHOOK_URL": service.url, "CRM_WEBHOOK_URL": "http://127.0.0.1:9/"}


@pytest.fixture(autouse=True)
def store(app):
    with app.app_context():
        yield get_store()


@pytest.fixture
def report(service):
    """Report troubles; all that Slack has been told by then."""

    def report(times=1):
        for _ in range(times):
            report_troubles()
        return [body["text"].removeprefix("Call status receiver: ") for body in service.bodies]

    return report


def keep(store, job, call_id="call-1"):
    """Keep an update with this job."""
    update_id = updates.record(store, update(call_id=call_id, received_at=store.now()), [job.handler], LEASE)
    jobs.settle(store, (update_id, LEASE, [job]))


def pause(store, handler="update_crm"):
    """Three failures in a row, and an update that waits."""
    for _ in range(3):
        service_of(handler).breaker.record_result(Unavailable("answered 502"))
    keep(store, Job(handler, "pending", store.now() + 30, 1, store.now(), "answered 502"))


def test_a_handler_paused_for_five_minutes_is_told_once_an_hour(store, clock, report):
    pause(store)
    clock.now += 299
    assert report() == []
    clock.now += 1
    assert report(times=3) == ["update_crm is paused for 5 min 0 s. Last error: answered 502. 1 update pending."]
    clock.now += HOUR
    assert len(report()) == 2


def test_its_end_is_told_once_with_how_long_it_lasted_and_how_many_were_delivered(store, clock, report):
    pause(store)
    clock.now += 300
    report()
    service_of("update_crm").breaker.record_result(None)
    assert len(report()) == 1  # there is work that waits
    stored, job = jobs.lease_next(store, "update_crm", clock.now, clock.now + 60)
    done = Job("update_crm", "done", None, 2, job.first_tried_at, job.error, clock.now)
    jobs.settle(store, (stored.id, job.due_at, [done]))
    clock.now += 60
    assert report(times=2)[1:] == ["update_crm is well again after 6 min 0 s: 1 update delivered."]


def test_two_processes_tell_one_message(store, settings, clock, report):
    pause(store)
    clock.now += 300
    other = create_app(settings)
    with closing(other.extensions["store"]), other.app_context():
        service_of("update_crm").breaker.paused_at = clock.now - 300
        assert len(report()) == 1
    assert len(report()) == 1


def test_updates_that_failed_for_good_are_told_again_only_when_more_have(store, clock, report):
    def fail(call_id):
        keep(store, Job("update_crm", "failed", None, 1, clock.now, "answered 404", clock.now), call_id)

    fail("a")
    assert report() == [
        "update_crm: 1 update failed for good. Last error: answered 404. Run it again on the dashboard."
    ]
    clock.now += 2 * HOUR
    assert len(report()) == 1
    fail("b")
    assert len(report()) == 2


def test_what_is_signed_wrongly_or_not_at_all_is_told_with_what_to_set(store, report):
    refusals.add(store, [RefusalCount("wrong signature", 3, NOW), RefusalCount("stale", 1, NOW)])
    [text] = report()
    assert text.startswith("3 updates refused: 401 wrong signature. WEBHOOK_SECRET must be")


def test_nothing_is_told_of_slack_itself_or_without_slack(app, store, clock, report):
    pause(store, "alert_on_error")
    clock.now += 300
    assert report() == []
    app.config["SLACK_WEBHOOK_URL"] = None
    refusals.add(store, [RefusalCount("unsigned", 3, clock.now)])
    assert report() == []


def test_what_slack_did_not_take_is_told_later(store, service, report):
    service.answers = [(500, {}, b"")]
    refusals.add(store, [RefusalCount("unsigned", 3, NOW)])
    assert [len(report()) for _ in range(3)] == [1, 2, 2]


def test_updates_that_are_spooled_are_told_while_the_database_is_away(settings, report):
    away = create_app(settings | {"DATABASE_URL": f"postgresql://user:hush@127.0.0.1:{free_port()}/calls"})
    with closing(away.extensions["store"]), away.app_context():
        assert away.test_client().post(URL, json=message()).data == b"OK"
        [text] = report(times=2)
    assert text.startswith("1 update spooled: 127.0.0.1:") and "hush" not in text
