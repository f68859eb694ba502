"""Messages as people have reported them, each kept as what it says, on both databases."""

import json
from datetime import UTC, datetime

import pytest

from schemas.status_update import load_update
from schemas.strict_json import parse_json
from schemas.times import iso
from stores import calls, updates
from tests.conftest import NOW, ROOT, URL

LINE, CALLER = "+12025550100", "+12025550143"
NOON, LATER = "2026-11-28T12:00:00.000Z", "2026-11-28T12:05:00.000Z"
MESSAGES = {path.stem: path.read_bytes() for path in (ROOT / "tests/payloads/reported").iterdir()}


@pytest.fixture
def settings(settings, store_settings):
    return settings | {name: store_settings[name] for name in ("SQLITE_PATH", "DATABASE_URL")}


@pytest.fixture
def store(app):
    return app.extensions["store"]


@pytest.fixture
def call_of(client, store):
    """Post these messages, the last of which is kept once; what is known of its call then."""

    def call_of(*names):
        for name in names:
            assert client.post(URL, data=MESSAGES[name]).data == b"OK"
        messages = [kept.message for kept in updates.since(store)]
        assert_readable(store, len(messages))
        return calls.get(store, json.loads(messages[-1])["message"]["call"]["id"])

    return call_of


def assert_readable(store, count):
    """Each message is JSON to the database, too."""
    query = (
        "CAST(message AS jsonb) -> 'message' ->> 'type'"
        if store.name == "postgresql"
        else "message ->> '$.message.type'"
    )
    assert store.query(f"SELECT {query} FROM updates") == [("status-update",)] * count


@pytest.mark.parametrize(
    ("name", "customer", "line_name", "ended_at", "error"),
    [
        ("bom", CALLER, "Front desk", NOON, None),
        ("nan", CALLER, "Front desk", NOON, None),
        ("number_int", "12025550143", "Front desk", NOON, None),
        ("phone_number_string", CALLER, None, NOON, None),
        ("national", "(202) 555-0143", "Front desk", NOON, None),
        ("sip_uri", "sip:+12025550177@sip.example.com", "Front desk", NOON, None),
        ("epoch_ms", CALLER, "Front desk", "2025-07-11T01:00:15.957Z", None),
        ("nul_metadata", CALLER, "Front desk", NOON, None),
        ("surrogate_metadata", CALLER, "Front desk", NOON, None),
        (
            "error_with_number",
            CALLER,
            "Front desk",
            NOON,
            "Transfer to (202) 555-0199 failed, then 202-555-0198 was busy",
        ),
    ],
)
def test_one_is_taken_and_ends_its_call(call_of, name, customer, line_name, ended_at, error):
    call = call_of(name)
    assert (call.line, call.line_name, call.customer) == (LINE, line_name, customer)
    assert (call.status, iso(call.ended_at)) == ("ended-with-error" if error else "ended", ended_at)
    assert (call.error, call.end_received_at) == (error, NOW)


@pytest.mark.parametrize(("name", "note"), [("nul_metadata", "a\ufffdb"), ("surrogate_metadata", "thanks \ufffd")])
def test_what_no_database_takes_is_replaced_in_metadata(call_of, store, name, note):
    call = call_of(name)
    [stored] = updates.of_call(store, call.id)
    assert stored.load().metadata == {"note": note}


def test_a_call_that_failed_is_over_and_an_error_everywhere(call_of, client, store):
    call = call_of("start_then_failed.1", "start_then_failed.2")
    assert (call.status, call.error, call.seconds) == ("failed", "SIP 480 Temporarily Unavailable", 20)
    assert calls.active(store) == []
    assert [(tally.error, tally.calls) for tally in calls.tallies(store, 0)] == [(call.error, 1)]
    for path in ("/calls?id=c-failed", "/?status=ended-with-error", f"/?error={call.error}"):
        page = client.get(path).text
        assert '<span class="status error"><bdi>failed</bdi></span>' in page
        assert call.error in page


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_ends_the_earlier_stands(call_of, order):
    call = call_of(*["both_finals.1_ended", "both_finals.2_error"][::order])
    assert (call.status, call.error, iso(call.ended_at)) == ("ended-with-error", "SIP 486 Busy here", LATER)


@pytest.mark.parametrize("order", [1, -1])
def test_a_repeat_that_says_more_adds_it_to_the_call_only(call_of, store, order):
    names = ["ended_bare", "ended_fuller"][::order]
    call = call_of(*names)
    updates.count_repeat(store, load(names[1]))
    call = calls.get(store, call.id)
    assert (call.end_reason, iso(call.ended_at)) == ("max_duration", LATER)
    [stored] = updates.of_call(store, call.id)
    assert stored.load() == load(names[0])


def load(name):
    return load_update(parse_json(MESSAGES[name]), datetime.fromtimestamp(NOW, UTC))
