"""What the receiver tells Slack about itself."""

import pytest

from app import create_app
from handlers.outbound import Unavailable
from handlers.service import service as service_of
from stores import get_store, jobs, refusal_counts, updates
from stores.records import Job, RefusalCount
from tests.conftest import URL, Service, free_port, message, update
from troubles import report_troubles

HOUR = 3600.0


@pytest.fixture
def settings(settings, service):
    return settings | {"SLACK_WEBHOOK_URL": service.url, "CRM_WEBHOOK_URL": "http://127.0.0.1:9/"}


@pytest.fixture(autouse=True)
def context(app):
    with app.app_context():
        yield


def pause(handler="update_crm"):
    """Three failures in a row, and an update that waits."""
    for _ in range(3):
        service_of(handler).breaker.record_result(Unavailable("answered 502"))
    update_id = updates.record(get_store(), update(received_at=get_store().now()), [handler], get_store().now() + 60)
    job = Job(handler, "pending", get_store().now() + 30, 1, get_store().now(), "answered 502")
    jobs.settle(get_store(), (update_id, get_store().now() + 60, [job]))


def told(service):
    return [body["text"].removeprefix("Call status receiver: ") for body in service.bodies]


def test_a_handler_paused_for_five_minutes_is_told_once_an_hour(clock, service):
    pause()
    clock.now += 299
    report_troubles()
    assert told(service) == []
    clock.now += 1
    for _ in range(3):
        report_troubles()
    assert told(service) == ["update_crm is paused for 5 min 0 s. Last error: answered 502. 1 update pending."]
    clock.now += HOUR
    report_troubles()
    assert len(told(service)) == 2


def test_its_end_is_told_once_with_how_long_it_lasted_and_how_many_were_delivered(clock, service):
    pause()
    clock.now += 300
    report_troubles()
    service_of("update_crm").breaker.record_result(None)
    report_troubles()
    assert len(told(service)) == 1  # there is work that waits
    _, job = jobs.lease_next(get_store(), "update_crm", clock.now, clock.now + 60)
    done = Job("update_crm", "done", None, 2, job.first_tried_at, job.error, clock.now)
    jobs.settle(get_store(), (1, job.due_at, [done]))
    clock.now += 60
    for _ in range(2):
        report_troubles()
    assert told(service)[1:] == ["update_crm is well again after 6 min 0 s: 1 update delivered."]


def test_two_processes_tell_one_message(settings, clock, service):
    pause()
    clock.now += 300
    other = create_app(settings)
    with other.app_context():
        for _ in range(3):
            service_of("update_crm").breaker.record_result(Unavailable("answered 502"))
        service_of("update_crm").breaker.paused_at = clock.now - 300
        report_troubles()
    report_troubles()
    assert len(told(service)) == 1
    other.extensions["store"].close()


def test_updates_that_failed_for_good_are_told_again_only_when_more_have(clock, service):
    def fail(call_id):
        update_id = updates.record(get_store(), update(call_id=call_id), ["update_crm"], clock.now + 60)
        job = Job("update_crm", "failed", None, 1, clock.now, "answered 404", clock.now)
        jobs.settle(get_store(), (update_id, clock.now + 60, [job]))

    fail("a")
    report_troubles()
    assert told(service) == [
        "update_crm: 1 update failed for good. Last error: answered 404. Run it again on the dashboard."
    ]
    clock.now += 2 * HOUR
    report_troubles()
    assert len(told(service)) == 1
    fail("b")
    report_troubles()
    assert len(told(service)) == 2


def test_what_is_signed_wrongly_or_not_at_all_is_told_with_what_to_set(clock, service):
    refusal_counts.add(
        get_store(), [RefusalCount("wrong signature", 3, clock.now), RefusalCount("stale", 1, clock.now)]
    )
    report_troubles()
    [text] = told(service)
    assert text.startswith("3 updates refused: 401 wrong signature. WEBHOOK_SECRET must be")


def test_nothing_is_told_of_slack_itself_or_without_slack(app, clock, service):
    pause("alert_on_error")
    clock.now += 300
    report_troubles()
    app.config["SLACK_WEBHOOK_URL"] = None
    refusal_counts.add(get_store(), [RefusalCount("unsigned", 3, clock.now)])
    report_troubles()
    assert service.requests == []


def test_what_slack_did_not_take_is_told_later(clock, service):
    service.answers = [(500, {}, b"")]
    refusal_counts.add(get_store(), [RefusalCount("unsigned", 3, clock.now)])
    report_troubles()
    report_troubles()
    assert len(service.requests) == 2
    report_troubles()
    assert len(service.requests) == 2


def test_updates_that_are_spooled_are_told_while_the_database_is_away(settings):
    slack = Service()
    url = f"postgresql://user:hush@127.0.0.1:{free_port()}/calls"
    app = create_app(settings | {"DATABASE_URL": url, "SLACK_WEBHOOK_URL": slack.url})
    assert app.test_client().post(URL, json=message()).data == b"OK"
    with app.app_context():
        for _ in range(2):
            report_troubles()
    [text] = told(slack)
    assert text.startswith("1 update spooled: 127.0.0.1:") and "hush" not in text
    app.extensions["store"].close()
    slack.close()
