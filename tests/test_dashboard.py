import base64

import pytest

from stores import Row, get_store
from tests.conftest import NOW, URL, message, update


def record(app, call_id="call-1", settled=(), failures=(), received_at=NOW - 90):
    with app.app_context():
        one = update(call_id=call_id, received_at=received_at)
        get_store().record(one, ["log_event", "update_crm"], NOW + 60, now=NOW)
        get_store().settle(one, NOW + 60, settled, failures)


def test_a_new_receiver_is_healthy(client):
    assert client.get("/healthz").json == {
        "status": "ok",
        "store": "sqlite",
        "pending": 0,
        "failed": 0,
        "oldest_pending_s": None,
        "last_update_at": None,
    }


def test_health_counts_what_is_pending_and_failed(app, client):
    record(app, "a", ["log_event"], [Row("update_crm", NOW + 30, 1, NOW, "answered 500")])
    record(app, "b", ["log_event"], [Row("update_crm", None, 1, NOW, "answered 404")], received_at=NOW - 100)
    health = client.get("/healthz", environ_base={"REMOTE_ADDR": "192.0.2.1"})
    assert health.status_code == 200
    assert health.json["pending"] == health.json["failed"] == 1
    assert health.json["oldest_pending_s"] == 90
    assert health.json["last_update_at"] == "2027-01-15T08:28:30.000Z"


def test_health_is_503_only_when_no_update_can_be_kept(client, tmp_path):
    (tmp_path / "calls.db").write_text("not a database, but long enough to be taken for one" * 100)
    answer = client.get("/healthz")
    assert answer.status_code == 503
    assert answer.json["status"] == "error"
    assert "calls.db" in answer.json["error"]
    (tmp_path / "calls.db").unlink()
    assert client.get("/healthz").status_code == 200


def test_calls_are_active_stale_or_recent(app, client, clock):
    client.post(URL, json=message(call_id="old", timestamp="2027-01-14T20:00:00Z"))
    clock.now += 12 * 3600
    client.post(URL, json=message(call_id="on", timestamp="2027-01-15T20:00:00Z"))
    client.post(URL, json=message(call_id="over", timestamp="2027-01-15T20:00:00Z"))
    client.post(URL, json=message("ended", "over", timestamp="2027-01-15T20:01:00Z"))
    calls = client.get("/calls.json").json
    assert {name: [call["id"] for call in calls[name]] for name in calls} == {
        "active": ["on"],
        "stale": ["old"],
        "recent": ["over", "on", "old"],
    }
    assert calls["recent"][0] == {
        "id": "over",
        "status": "ended",
        "type": "inbound_phone_call",
        "line": "+31850835037",
        "line_name": "HMS Sovereign Demo",
        "customer": "+31612345678",
        "started_at": "2027-01-15T20:00:00.000Z",
        "ended_at": "2027-01-15T20:01:00.000Z",
        "seconds": 60,
        "error": None,
        "end_reason": None,
        "received_at": "2027-01-15T20:30:00.000Z",
    }


def test_a_late_end_settles_a_stale_call(client, clock):
    client.post(URL, json=message())
    clock.now += 13 * 3600
    client.post(URL, json=message("ended"))
    calls = client.get("/calls.json").json
    assert (calls["active"], calls["stale"]) == ([], [])


def test_without_a_password_only_this_machine_sees_calls(client):
    assert client.get("/calls.json").status_code == 200
    for elsewhere in ({"environ_base": {"REMOTE_ADDR": "192.0.2.1"}}, {"headers": {"X-Forwarded-For": "192.0.2.1"}}):
        answer = client.get("/calls.json", **elsewhere)
        assert answer.status_code == 403
        assert "DASHBOARD_PASSWORD" in answer.json["error"]


class TestPassword:
    @pytest.fixture
    def settings(self, settings):
        return settings | {"DASHBOARD_PASSWORD": "pässword"}

    @pytest.mark.parametrize("user", ["", "anyone"])
    def test_with_the_password_calls_are_seen_from_anywhere(self, client, user):
        environ = {"REMOTE_ADDR": "192.0.2.1"}
        assert client.get("/calls.json", auth=(user, "pässword"), environ_base=environ).status_code == 200

    @pytest.mark.parametrize(
        "value",
        [
            None,
            "Basic",
            "Basic !",
            "Bearer pässword".encode().decode("latin-1"),
            "Basic " + base64.b64encode(b"x:wrong").decode(),
            "Basic " + base64.b64encode(b"x:\xff\xfe").decode(),
        ],
    )
    def test_without_it_they_are_not_even_from_this_machine(self, client, value):
        answer = client.get("/calls.json", headers={"Authorization": value} if value else {})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert "DASHBOARD_PASSWORD" in answer.json["error"]
