"""How refused updates are counted."""

import json
from unittest.mock import Mock

import pytest

from stores import StoreError, get_refusals, get_store, refusals
from stores.records import RefusalCount
from stores.refusals import FLUSH_EVERY, REASONS
from tests.conftest import NOW, SECRET, URL, message, signed

BODY = json.dumps(message()).encode()
FAILS = Mock(side_effect=StoreError("full"))


@pytest.fixture
def settings(settings):
    return settings | {"WEBHOOK_SECRET": (SECRET,)}


@pytest.fixture
def store(app):
    return app.extensions["store"]


@pytest.fixture
def flush(app, clock):
    """Write what is counted, a second later."""

    def flush():
        clock.now += FLUSH_EVERY
        with app.app_context():
            get_refusals().flush(get_store(), clock.now)

    return flush


def post(client, body=BODY, **headers):
    return client.post(URL, data=body, headers=signed(body) | headers)


def test_every_reason_is_counted_by_its_name(app, client, store, flush, monkeypatch):
    asked = {
        "unsigned": client.post(URL, data=BODY),
        "malformed X-Webhook-Timestamp": post(client, **{"X-Webhook-Timestamp": "soon"}),
        "malformed X-Webhook-Signature": post(client, **{"X-Webhook-Signature": "sha256=none"}),
        "wrong signature": post(client, **signed(BODY, "another secret")),
        "stale": post(client, **signed(BODY, timestamp=int(NOW - 301))),
        "too large": post(client, b" " * 2**21),
        "not JSON": post(client, b"{sender's text"),
        "not a status update": post(client, b'{"message": {"type": "status-update"}}'),
    }
    app.config |= {"WEBHOOK_SECRET": (), "DASHBOARD_PASSWORD": "hush"}
    asked["no secret is set here"] = client.post(URL, data=BODY, environ_base={"REMOTE_ADDR": "192.0.2.1"})
    monkeypatch.setattr("app.dispatch", FAILS)
    asked["could not be kept"] = post(client)
    monkeypatch.setattr("flask.Request.get_data", Mock(side_effect=OSError))
    asked["the body stopped halfway"] = post(client)
    asked["too many wrong passwords"] = [client.get("/", auth=("", "guess")) for _ in range(11)][-1]
    assert set(asked) == set(REASONS)
    for reason, answer in asked.items():
        assert answer.json["error"].startswith(reason)
    flush()
    assert {(each.reason, each.times) for each in refusals.since(store, 0)} == {(reason, 1) for reason in REASONS}


def test_what_is_no_update_is_not_counted(client, store, flush):
    for path in ("/", "/wp-login.php", URL):
        client.get(path)
    flush()
    assert refusals.since(store, 0) == []


def test_a_flood_is_one_write_a_second(client, store, clock, flush, monkeypatch):
    write = Mock(wraps=refusals.add)
    monkeypatch.setattr(refusals, "add", write)
    for _ in range(10):
        for _ in range(20):
            client.post(URL, data=BODY)
        clock.now += FLUSH_EVERY / 4
    assert write.call_count == 3
    assert refusals.since(store, 0) == [RefusalCount("unsigned", 161, NOW + 2)]
    flush()
    assert refusals.since(store, 0) == [RefusalCount("unsigned", 200, NOW + 9 / 4)]


def test_what_the_store_does_not_take_is_counted_later(client, store, clock, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(refusals, "add", FAILS)
        assert client.post(URL, data=BODY).status_code == 401
    clock.now += FLUSH_EVERY
    client.post(URL, data=BODY)
    assert refusals.since(store, 0) == [RefusalCount("unsigned", 2, NOW + FLUSH_EVERY)]
