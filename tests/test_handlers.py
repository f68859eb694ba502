"""What the handlers send, and what they make of the answers."""

import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from flask import g

from handlers import HANDLERS
from handlers.active_calls import track_call
from handlers.alerts import alert_on_error, alert_text
from handlers.crm import crm_record, update_crm
from handlers.event_log import log_event
from handlers.outbound import GiveUp, NotNow, Retry, Unavailable, post
from stores import get_store
from tests.conftest import free_port, update

ERROR = update("ended-with-error", timestamp="2025-12-13T12:05:00Z", error="STT connection failed")


@pytest.fixture(autouse=True)
def context(app):
    with app.app_context():
        yield


def answer(service, status, headers=None, text=b""):
    service.default = (status, headers or {}, text)


class TestOutbound:
    def test_it_posts_json_and_returns_the_answer(self, service):
        assert post(f"{service.url}/x?a=b", {"a": "é"}, {"X-Extra": "1"}).text == "ok"
        [(path, headers, body)] = service.requests
        assert (path, json.loads(body), headers["X-Extra"]) == ("/x?a=b", {"a": "é"}, "1")
        assert headers["Content-Type"] == "application/json"

    def test_a_connection_is_used_again(self, service):
        peers = []

        def note(request):
            peers.append(request.client_address)
            request.send_response(204)
            request.end_headers()

        service.default = note
        for _ in range(3):
            post(service.url, {})
        assert len(set(peers)) == 1

    @pytest.mark.parametrize("status", [500, 501, 503, 429])
    def test_5xx_and_429_are_the_services_failure(self, service, status):
        answer(service, status)
        with pytest.raises(Unavailable, match=str(status)):
            post(service.url, {})

    @pytest.mark.parametrize("status", [400, 401, 403, 422])
    def test_other_refusals_are_tried_again(self, service, status):
        answer(service, status)
        with pytest.raises(Retry, match=str(status)) as caught:
            post(service.url, {})
        assert type(caught.value) is Retry

    @pytest.mark.parametrize("status", [404, 410])
    def test_what_is_not_there_is_given_up(self, service, status):
        answer(service, status, text=b"channel_not_found")
        with pytest.raises(GiveUp, match=f"{status}: channel_not_found"):
            post(service.url, {})

    @pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 304])
    def test_no_redirect_is_followed(self, service, status):
        answer(service, status, {"Location": f"{service.url}/elsewhere"})
        with pytest.raises(Retry, match=str(status)):
            post(service.url, {})
        assert len(service.requests) == 1

    def test_no_connection_is_the_services_failure(self):
        with pytest.raises(Unavailable, match="no connection"):
            post(f"http://127.0.0.1:{free_port()}/secret-path", {})

    def test_a_cut_connection_is_the_services_failure(self, service):
        service.default = lambda request: request.connection.shutdown(socket.SHUT_RDWR)
        with pytest.raises(Unavailable) as caught:
            post(f"{service.url}/secret-path", {}, {"Authorization": "Bearer secret-token"})
        assert "secret" not in str(caught.value)

    def test_no_answer_in_time_is_the_services_failure(self, app, service):
        app.config["OUTBOUND_TIMEOUT"] = 0.1
        service.default = lambda request: time.sleep(1)
        with pytest.raises(Unavailable, match="no answer in time"):
            post(service.url, {})

    def test_without_time_left_nothing_is_sent(self, service):
        g.deadline = time.monotonic()
        with pytest.raises(NotNow):
            post(service.url, {})
        assert service.requests == []

    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("7", 7),
            ("0", 0),
            ("999999", 3600),
            (format_datetime(datetime(2000, 1, 1, tzinfo=UTC), usegmt=True), 0),
            ("soon", None),
            ("-5", None),
            ("", None),
            ("\xb2", None),
        ],
    )
    def test_retry_after_is_read(self, service, value, seconds):
        answer(service, 429, {"Retry-After": value})
        with pytest.raises(Unavailable) as caught:
            post(service.url, {})
        assert caught.value.after == seconds

    def test_retry_after_can_be_a_date(self, service):
        answer(service, 503, {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)})
        with pytest.raises(Unavailable) as caught:
            post(service.url, {})
        assert 90 < caught.value.after <= 100


class TestAlerts:
    def test_a_failed_call_is_told_to_slack(self, app, service):
        app.config["SLACK_WEBHOOK_URL"] = service.url
        track_call(update("in-progress"))
        track_call(ERROR)
        alert_on_error(ERROR)
        assert service.bodies == [
            {
                "text": "Call error: STT connection failed\nLine: HMS Sovereign Demo +31850835037\n"
                "Caller: +31612345678\nTime: 2025-12-13 12:05:00 UTC\nLength: 5 min 0 s"
            }
        ]

    def test_only_errors_are_told(self, app, service):
        app.config["SLACK_WEBHOOK_URL"] = service.url
        for status in ("in-progress", "ended", "failed"):
            alert_on_error(update(status))
        assert service.requests == []

    def test_unset_it_is_off(self, service):
        alert_on_error(ERROR)
        assert service.requests == []

    def test_what_slack_reads_as_markup_is_escaped(self):
        text = alert_text(update("ended-with-error", error="<!channel> a & b", customer=None, phone_number=None), None)
        assert text.startswith("Call error: &lt;!channel&gt; a &amp; b\nLine: web call\nCaller: unknown\n")
        assert "Length" not in text


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
        [(_, headers, _)] = service.requests
        assert headers["Idempotency-Key"] == "call-_%2B31%2F%C3%A9:ended-with-error"
        assert headers["Authorization"] == "Bearer token"

    def test_without_a_token_none_is_sent(self, app, service):
        app.config["CRM_WEBHOOK_URL"] = service.url
        update_crm(update())
        assert "Authorization" not in service.requests[0][1]

    def test_unset_it_is_off(self, service):
        update_crm(update())
        assert service.requests == []

    @pytest.mark.parametrize(
        ("kind", "direction"),
        [("inbound_phone_call", "inbound"), ("outbound_phone_call", "outbound"), ("web_call", "web"), (None, None)],
    )
    def test_the_direction_is_that_of_the_call(self, kind, direction):
        one = update(call={"type": kind})
        assert crm_record(one)["direction"] == direction


def test_a_call_is_tracked():
    track_call(update())
    assert [call.id for call in get_store().active()] == ["call-1"]


def test_every_update_is_logged(caplog):
    caplog.set_level("INFO")
    log_event(ERROR)
    [record] = caplog.records
    assert (record.message, record.call_id, record.status) == ("update", "call-1", "ended-with-error")
    assert record.error == "STT connection failed"
    assert record.fields["customer"] == "+31612345678"


def test_the_handlers_are_called_in_this_order():
    assert HANDLERS == (log_event, track_call, alert_on_error, update_crm)
