"""What the receiver tells Slack about itself."""

from contextlib import closing

import pytest

from app import create_app
from stores import get_store, refusals
from stores.records import Job
from tests.conftest import NOW, URL, free_port, keep_update, message, settle_jobs, update
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
    update_id = keep_update(store, update(call_id=call_id, received_at=store.now()), [job.handler], LEASE)
    settle_jobs(store, (update_id, LEASE, [job]))


def wait_for(store, handler="update_crm", error="answered 401"):
    keep(store, Job(handler, "pending", store.now() + 30, 1, store.now(), error))


def test_work_that_waits_for_ten_minutes_is_told_whatever_the_reason_and_again_after_an_hour(store, clock, report):
    wait_for(store)
    clock.now += 599
    assert report() == []
    clock.now += 1
    text = "update_crm: 1 pending, 0 failed for good. Last error: answered 401."
    assert report(times=3) == [text]
    clock.now += HOUR
    assert report() == [text] * 2


def test_work_of_handlers_that_are_off_or_gone_is_not_told(store, clock, report):
    for handler in ("track_call", "old_handler"):
        wait_for(store, handler)
        clock.now += 600
    assert report() == []


def test_two_processes_tell_one_message(store, settings, clock, report):
    wait_for(store)
    clock.now += 600
    other = create_app(settings)
    with closing(other.extensions["store"]), other.app_context():
        assert len(report()) == 1
    assert len(report()) == 1


def test_updates_that_failed_for_good_are_told_while_that_is_new(store, clock, report):
    def fail(call_id):
        keep(store, Job("update_crm", "failed", None, 1, clock.now, "answered 410", clock.now), call_id)

    fail("a")
    text = "update_crm: 0 pending, 1 failed for good. Last error: answered 410."
    assert report() == [text]
    clock.now += HOUR
    assert len(report()) == 1
    fail("b")
    assert len(report()) == 2


def test_what_is_signed_wrongly_or_not_at_all_is_told_with_what_to_set(store, report):
    for reason, times in (("wrong signature", 3), ("stale", 2), ("not JSON", 1)):
        refusals.add(store, reason, times, NOW)
    text, stale = report()
    assert stale.startswith("2 refused: 401 stale. Set the clock right")
    assert text.startswith("3 refused: 401 wrong signature. WEBHOOK_SECRET must be")


def test_nothing_is_told_of_slack_itself_or_without_slack(app, store, clock, report):
    wait_for(store, "alert_on_error")
    clock.now += 600
    assert report() == []
    app.config["SLACK_WEBHOOK_URL"] = None
    refusals.add(store, "unsigned", 3, clock.now)
    assert report() == []


def test_what_slack_did_not_take_is_told_later(store, service, report):
    service.answers = [(500, {}, b"")]
    refusals.add(store, "unsigned", 3, NOW)
    assert [len(report()) for _ in range(3)] == [1, 2, 2]


def test_updates_that_are_spooled_are_told_while_the_database_is_away(settings, report):
    away = create_app(settings | {"DATABASE_URL": f"postgresql://user:hush@127.0.0.1:{free_port()}/calls"})
    with closing(away.extensions["store"]), away.app_context():
        assert away.test_client().post(URL, json=message()).data == b"OK"
        [text] = report(times=2)
    assert text.startswith("1 spooled: 127.0.0.1:") and "hush" not in text


class TestSilence:
    @pytest.fixture
    def settings(self, settings):
        return settings | {"ALERT_SILENCE": 8}

    def test_it_is_told_once_and_its_end_once(self, store, clock, report):
        assert report() == []  # nothing has ever come
        keep_update(store, update(received_at=clock.now))
        clock.now += 8 * HOUR - 1
        assert report() == []
        clock.now += 1
        assert report(times=2) == ["No update has come for 8 h 0 min. Does the provider still post to this receiver?"]
        clock.now += 90 * HOUR
        assert len(report()) == 1
        keep_update(store, update("ended", received_at=clock.now))
        assert report(times=2)[1:] == ["Updates come again."]

    def test_unset_it_is_off(self, app, store, clock, report):
        app.config["ALERT_SILENCE"] = None
        keep_update(store, update(received_at=clock.now))
        clock.now += 1000 * HOUR
        assert report() == []

    def test_what_slack_did_not_take_of_it_is_told_later(self, store, clock, service, report):
        keep_update(store, update(received_at=clock.now))
        clock.now += 9 * HOUR
        service.answers = [500]
        assert [len(report()) for _ in range(3)] == [1, 2, 2]
