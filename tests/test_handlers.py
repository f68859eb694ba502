"""What the handlers send, and what they make of the answers."""

import json
import re

import pytest

from handlers import HANDLERS
from handlers.active_calls import track_call
from handlers.crm import crm_record, update_crm
from handlers.event_log import log_event
from handlers.slack import SLACK, alert_on_error, alert_text, plain
from stores import get_store, jobs, updates
from tests.conftest import SECRET, URL, message, retry_one, signed, update
from work.dispatch import dispatch

ERROR = update("ended-with-error", timestamp="2025-12-13T12:05:00Z", error="STT connection failed")

pytestmark = pytest.mark.usefixtures("context")


def fail(clock, call_id="call-1", error="STT connection failed", **fields):
    """Dispatch an update that a call ended with `error`, received now."""
    dispatch(update("ended-with-error", call_id, clock.now, error=error, timestamp="2025-12-13T12:05:00Z", **fields))


class TestAlerts:
    @pytest.fixture
    def settings(self, settings, service):
        return settings | {"SLACK_WEBHOOK_URL": service.url}

    def retry(self, clock, seconds):
        clock.now += seconds
        return [*iter(lambda: retry_one(alert_on_error, clock.now), None)]

    def test_a_failed_call_is_told_to_slack(self, clock, service):
        dispatch(update("in-progress"))
        fail(clock)
        assert service.bodies == [
            {
                "text": "Call error: STT connection failed\nLine: HMS Sovereign Demo +31850835037\n"
                "Caller: +31612345678\nTime: 2025-12-13 12:05:00 UTC\nLength: 5 min 0 s"
            }
        ]

    def test_only_errors_are_told(self, service):
        for status in ("in-progress", "ended", "ringing", "queued"):
            dispatch(update(status))
        assert service.requests == []

    @pytest.mark.parametrize("status", ["failed", "rejected", "insufficient-credits"])
    def test_every_status_of_an_error_is_told(self, service, status):
        dispatch(update(status, error="SIP 480"))
        [body] = service.bodies
        assert body["text"].startswith("Call error: SIP 480\n")

    def test_a_storm_makes_one_message_an_interval_and_the_numbers_add_up(self, clock, service):
        for number in range(20):
            fail(clock, f"call-{number}", f"call {1000 + number} failed")
        assert len(service.requests) == 1
        assert self.retry(clock, 59) == []
        assert self.retry(clock, 1) == [True]
        assert [re.findall("and ([0-9]+) more", body["text"]) for body in service.bodies] == [[], ["18"]]
        assert jobs.backlog(get_store()) == []

    def test_a_message_that_was_not_taken_is_told_again_and_covers_all(self, clock, service):
        service.answers.append(500)
        fail(clock, "a")
        fail(clock, "b")
        assert self.retry(clock, 60) == []
        assert ["and 1 more" in body["text"] for body in service.bodies] == [False, True]

    def test_of_slack_only_ok_is_taken(self, clock, service, monkeypatch):
        service.default = (200, {}, b"<html>")
        fail(clock, "a", "one")
        assert jobs.backlog(get_store()) == []
        monkeypatch.setattr("handlers.slack.SLACK", "127.0.0.1")
        fail(clock, "b", "another")
        assert jobs.backlog(get_store())[0].error == "answered 200 but <html>"

    def test_slack_is_known_by_its_host(self):
        hosts = ("hooks.slack.com", "hooks.slack-gov.com", "slack.com.example.com", "noslack.com")
        assert [host.endswith(SLACK) for host in hosts] == [True, True, False, False]

    def test_it_links_to_the_call_where_the_app_is_known(self, app, clock, client, service):
        app.config["WEBHOOK_SECRET"] = (SECRET,)
        body = json.dumps(message("ended-with-error", "call-_+316", error="x")).encode()
        headers = signed(body) | {"X-Forwarded-Proto": "https"}
        client.post(URL, data=body, headers=headers, base_url="http://calls.example.com")
        assert service.bodies[0]["text"].endswith("\nhttps://calls.example.com/calls?id=call-_%2B316")
        app.config["PUBLIC_URL"] = "https://x.onrender.com"
        fail(clock, "call-2", "y")
        assert service.bodies[1]["text"].endswith("\nhttps://x.onrender.com/calls?id=call-2")

    def text(self, error="x", **fields):
        return alert_text(update("ended-with-error", error=error, **fields), None, 0, None)

    @pytest.mark.parametrize(
        "error", ["<!channel> <https://evil|click>", "@channel @everyone", "[click](https://evil)"]
    )
    def test_no_error_pings_anybody_or_links_anywhere(self, error):
        assert not re.search("<|@[a-z]|://", self.text(error))

    def test_no_error_makes_a_line_of_its_own_or_a_message_too_long(self):
        line = self.text("a\nCaller: me\x1b\u2028b" + "c" * 9000).splitlines()[0]
        assert line.startswith("Call error: a Caller: me b") and line.endswith("c…")
        assert self.text(customer=None, phone_number=None).splitlines()[1:3] == ["Line: web call", "Caller: unknown"]

    @pytest.mark.parametrize("character", ["x", "<", "&", "@", "é"])
    @pytest.mark.parametrize("url", [None, "https://calls.example.com"])
    def test_a_message_has_2000_characters_at_most_and_the_error_is_what_is_cut(self, character, url):
        long = {"number": character * 900, "name": character * 900}
        one = update("ended-with-error", character * 256, error=character * 5000, customer=long, phone_number=long)
        text = alert_text(one, 60, 12, url, slack=True)
        assert 1900 < len(text) <= 2000
        assert text.startswith(f"Call error: {plain(character)}")
        assert "\nand 12 more\n" in text and "\nLength: 1 min 0 s" in text

    def test_a_time_is_one_that_slack_shows_in_each_readers_zone(self):
        text = alert_text(ERROR, None, 0, None, slack=True)
        assert "Time: <!date^1765627500^{date_num} {time_secs}|2025-12-13 12:05:00 UTC>" in text
        assert "Time: 2025-12-13 12:05:00 UTC" in alert_text(ERROR, None, 0, None)

    def test_an_alert_that_is_sent_later_has_the_same_link(self, client, clock, service):
        service.answers = [500]
        client.post(URL, json=message("ended-with-error", "a", error="x"), base_url="http://localhost:8000")
        assert self.retry(clock, 60) == [True]
        first, second = (body["text"] for body in service.bodies)
        assert first.splitlines()[-1] == second.splitlines()[-1] == "http://localhost:8000/calls?id=a"


class TestCrm:
    def test_every_update_is_posted(self, app, service):
        app.config |= {"CRM_WEBHOOK_URL": service.url, "CRM_TOKEN": "token"}
        update_crm(update("ended-with-error", "call-_+31/é", error="x", assistant={"metadata": {"id": "7"}}))
        assert service.bodies == [
            {
                "type": "call",
                "phone": "+31612345678",
                "status": "ended-with-error",
                "timestamp": "2025-12-13T12:00:00.000Z",
                "call_id": "call-_+31/é",
                "direction": "inbound",
                "line": "+31850835037",
                "error": "x",
                "metadata": {"id": "7"},
            }
        ]
        app.config["CRM_TOKEN"] = None
        update_crm(update())
        headers, without_token = (headers for _, headers, _ in service.requests)
        assert headers["Idempotency-Key"] == "call-_%2B31%2F%C3%A9:ended-with-error"
        assert headers["Authorization"] == "Bearer token"
        assert "Authorization" not in without_token

    def test_another_header_has_the_token_plain(self, app, service):
        app.config |= {"CRM_WEBHOOK_URL": service.url, "CRM_TOKEN": "token", "CRM_TOKEN_HEADER": "X-API-Key"}
        update_crm(update())
        [(_, headers, _)] = service.requests
        assert headers["X-API-Key"] == "token"
        assert "Authorization" not in headers
        app.config["CRM_TOKEN_HEADER"] = "authorization"  # the same header as the default
        update_crm(update())
        assert service.requests[-1][1]["authorization"] == "Bearer token"

    def test_the_direction_is_that_of_the_call(self):
        kinds = ("inbound_phone_call", "outbound_phone_call", "web_call", None)
        directions = [crm_record(update(call={"type": kind}))["direction"] for kind in kinds]
        assert directions == ["inbound", "outbound", "web", None]


def test_every_update_is_logged(caplog):
    caplog.set_level("INFO")
    log_event(ERROR)
    [record] = caplog.records
    assert (record.message, record.call_id, record.status) == ("update", "call-1", "ended-with-error")
    assert record.error == "STT connection failed"
    assert record.fields["customer"] == "+31612345678"


def test_the_handlers_are_called_in_this_order():
    assert HANDLERS == (log_event, track_call, alert_on_error, update_crm)


def test_without_their_settings_only_the_log_has_work():
    dispatch(ERROR)
    [stored] = updates.of_call(get_store(), "call-1")
    assert (stored.handlers, stored.jobs) == (("log_event",), ())
