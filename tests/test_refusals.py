"""How refused updates are counted."""

import json
from hashlib import sha256
from unittest.mock import Mock

import pytest

from intake.refusals import COMMAND_AGENT
from stores import StoreError, refusals
from stores.refusals import REASONS
from tests.conftest import NOW, SECRET, URL, message, signed

BODY = json.dumps(message()).encode()
BROKEN = b"{sender's text"
FAILS = Mock(side_effect=StoreError("full"))


@pytest.fixture
def settings(settings):
    return settings | {"WEBHOOK_SECRET": (SECRET,)}


@pytest.fixture
def store(app):
    return app.extensions["store"]


@pytest.fixture
def counts(app, store, clock):
    """Write what was refused, which counts nothing twice; all that is counted, by reason."""

    def counts():
        with app.app_context():
            for _ in range(2):
                app.extensions["refusals"].flush(store, clock.now)
        return {reason: times for reason, times, _ in refusals.since(store, 0)}

    return counts


def post(client, body=BODY, path=URL, **headers):
    return client.post(path, data=body, headers=signed(body) | headers)


def test_every_reason_is_counted_by_its_name(app, client, counts, monkeypatch):
    answers = {
        "unsigned": client.post(URL, data=BODY),
        "malformed X-Webhook-Timestamp": post(client, **{"X-Webhook-Timestamp": "soon"}),
        "malformed X-Webhook-Signature": post(client, **{"X-Webhook-Signature": "sha256=none"}),
        "wrong signature": post(client, **signed(BODY, "another secret")),
        "stale": post(client, **signed(BODY, timestamp=int(NOW - 301))),
        "wrong path": post(client, path="/webhook"),
        "too large": post(client, b" " * (2**21 + 1)),
        "encoded": post(client, **{"Content-Encoding": "gzip"}),
        "not JSON": post(client, BROKEN),
        "not a status update": post(client, b'{"message": {"type": "status-update"}}'),
    }
    app.config |= {"WEBHOOK_SECRET": (), "DASHBOARD_PASSWORD": "hush"}
    answers["no secret is set here"] = client.post(URL, data=BODY, environ_base={"REMOTE_ADDR": "192.0.2.1"})
    monkeypatch.setattr("app.dispatch", FAILS)
    answers["could not be kept"] = post(client)
    monkeypatch.setattr("flask.Request.get_data", Mock(side_effect=OSError))
    answers["the body stopped halfway"] = post(client)
    assert set(answers) == set(REASONS)
    for reason, answer in answers.items():
        assert answer.status_code == REASONS[reason][0]
        assert answer.json["error"].startswith(reason)
    assert counts() == dict.fromkeys(REASONS, 1)


def test_what_is_no_update_is_not_counted(client, counts):
    for path in ("/", "/wp-login.php", URL):
        client.get(path)
        client.post(path.rstrip("e"), data=BODY)
        client.post(path.rstrip("e"), data=BODY, headers=signed(BODY, "another secret"))
    assert counts() == {}


def test_what_flask_check_sends_is_not_counted(client, counts):
    assert post(client, b"{", **{"User-Agent": COMMAND_AGENT}).status_code == 400
    assert counts() == {}


def test_a_flood_is_one_write(client, store, counts, monkeypatch):
    write = Mock(wraps=refusals.add)
    monkeypatch.setattr(refusals, "add", write)
    for _ in range(200):
        client.post(URL, data=BODY)
    write.assert_not_called()
    assert counts() == {"unsigned": 200}
    assert refusals.since(store, 0) == [("unsigned", 200, NOW)]
    write.assert_called_once()


def test_what_the_store_does_not_take_is_counted_later(client, counts, monkeypatch):
    client.post(URL, data=BODY)
    with monkeypatch.context() as patch:
        patch.setattr(refusals, "add", FAILS)
        with pytest.raises(StoreError):
            counts()
    client.post(URL, data=BODY)
    assert counts() == {"unsigned": 2}


def test_what_is_signed_but_not_json_is_logged_by_length_and_hash(client, caplog):
    assert post(client, BROKEN).status_code == 400
    [record] = caplog.records
    assert (record.fields["length"], record.fields["sha256"]) == (14, sha256(BROKEN).hexdigest())
    assert "sender" not in str(vars(record))


def test_of_a_refused_update_only_what_the_schema_names_is_logged(client, caplog):
    document = message(status="", error={"prompt": "P"}, tools=["P"], end_reason=5)
    secrets = {"webhook_secret": "P", "prompt": "P"}
    document["message"]["call"] |= secrets
    document["message"]["customer"] = [secrets]
    document["message"]["phone_number"] = "+31850835037"
    document["message"]["assistant"] = {"metadata": {"crm": {"id": 1}}, "model": {"prompt": "P"}} | secrets
    assert post(client, json.dumps(document).encode()).status_code == 422
    [record] = caplog.records
    assert record.update == {
        "type": "status-update",
        "timestamp": "2025-12-13T12:00:00Z",
        "call": {"id": "call-1", "type": "inbound_phone_call", "status": ""},
        "phone_number": "+31850835037",
        "end_reason": 5,
        "assistant": {"metadata": {"crm": {"id": 1}}},
    }
