"""Whatever is sent, the answer is one of the table's, and the next good update is taken."""

import json
from datetime import UTC, datetime

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is in requirements-dev.txt")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stores
from schemas.status_update import dump, load_update
from schemas.strict_json import parse_json
from tests.conftest import NOW, SECRET, URL, Clock, message, signed

ANSWERS = {200, 400, 401, 413, 422}
once = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

text = st.text(st.characters(exclude_categories=()), max_size=30)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)
fields = st.dictionaries(
    st.sampled_from(["type", "timestamp", "call", "phone_number", "customer", "error", "end_reason", "assistant"]),
    values | st.datetimes().map(str) | st.fixed_dictionaries({"id": values, "status": values, "metadata": values}),
)
calls = st.fixed_dictionaries({"call": st.fixed_dictionaries({"id": text, "status": text, "type": st.none() | text})})
header = st.text(st.characters(max_codepoint=255, exclude_categories=("Cc",)), max_size=80)


def changed(changes):
    return json.dumps({"message": message()["message"] | changes})


@settings(once, max_examples=600)
@given(body=st.one_of(st.binary(max_size=300), values.map(json.dumps), fields.map(changed), calls.map(changed)))
def test_any_body(client, body):
    answer = client.post(URL, data=body)
    assert answer.status_code in ANSWERS
    assert answer.data == b"OK" or isinstance(answer.json, dict)
    assert client.post(URL, json=message("ended")).data == b"OK"


@once
@given(timestamp=header, signature=header)
def test_any_signature(app, client, timestamp, signature):
    app.config["WEBHOOK_SECRET"] = (SECRET,)
    body = json.dumps(message()).encode()
    headers = {"X-Webhook-Timestamp": timestamp, "X-Webhook-Signature": signature}
    assert client.post(URL, data=body, headers=headers).status_code == 401
    assert client.post(URL, data=body, headers=signed(body)).data == b"OK"


@pytest.fixture
def database(tmp_path, postgres):
    config = {"SQLITE_PATH": str(tmp_path / "calls.db"), "DATABASE_URL": postgres.url, "CLOCK": Clock()}
    database = stores.create(config)
    yield database
    database.close()


@once
@given(metadata=values, error=text, name=text)
def test_whatever_is_kept_is_what_postgresql_takes_for_json(database, metadata, error, name):
    body = json.dumps(message(error=error, customer={"number": name}, assistant={"metadata": metadata})).encode()
    update = load_update(parse_json(body), datetime.fromtimestamp(NOW, UTC))
    document = "(SELECT CAST(:kept AS jsonb) -> 'message' AS message) AS d"
    query = f"SELECT message ->> 'error', message -> 'customer' ->> 'number' FROM {document}"
    assert database.query(query, {"kept": json.dumps(dump(update))}) == [(update.error, update.customer.number)]
