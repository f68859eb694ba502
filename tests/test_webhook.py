"""What the one webhook route answers, and what it keeps."""

import json
import logging
from unittest.mock import Mock

import pytest

from stores import jobs, updates
from tests.conftest import NOW, SECRET, URL, message, payload, signed

BODY = json.dumps(message()).encode()


def post(client, body, headers=None, **options):
    if isinstance(body, dict | list):
        body = json.dumps(body).encode()
    return client.post(URL, data=body, headers=headers, **options)


def kept(app):
    return [(each.call_id, each.status) for each in updates.since(app.extensions["store"])]


NAMES = ("in_progress", "ended", "ended_with_error", "ended_with_assistant", "web_call_in_progress")


@pytest.mark.parametrize("document", [*map(payload, NAMES), message("transferred")], ids=[*NAMES, "unknown status"])
def test_a_status_update_is_kept_and_handed_on_and_answered_ok(app, client, caplog, document):
    caplog.set_level(logging.INFO)
    answer = post(client, document)
    assert (answer.status_code, answer.data) == (200, b"OK")
    call = document["message"]["call"]
    assert kept(app) == [(call["id"], call["status"])]
    assert [record.message for record in caplog.records] == ["update"]
    assert jobs.backlog(app.extensions["store"]) == []


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_the_content_type_does_not_matter(client, content_type):
    assert post(client, message(), content_type=content_type).data == b"OK"


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("other_assistant_request", logging.INFO),
        ("other_end_of_call_report", logging.INFO),
        ("other_tool_calls", logging.WARNING),
    ],
)
def test_other_messages_are_answered_with_an_empty_object_and_logged(app, client, caplog, name, level):
    caplog.set_level(logging.INFO)
    answer = post(client, payload(name))
    assert (answer.status_code, answer.json) == (200, {})
    assert kept(app) == []
    assert [record.levelno for record in caplog.records] == [level]


@pytest.mark.parametrize("method", ["get", "head", "put", "delete", "patch", "options"])
def test_405_for_any_other_method(client, method):
    answer = getattr(client, method)(URL)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    if method != "head":
        assert URL in answer.json["error"]


@pytest.mark.parametrize("path", ["/", "/webhook", f"{URL}s"])
def test_posting_elsewhere_says_where_to_post(app, client, caplog, path):
    assert client.post(path).status_code in (404, 405)
    app.config["WEBHOOK_SECRET"] = (SECRET,)
    answer = client.post(path, data=BODY, headers=signed(BODY))
    assert answer.status_code == 404
    assert URL in answer.json["error"]
    assert caplog.records[-1].update["call"]["id"] == "call-1"  # for flask import


@pytest.mark.parametrize("path", [f"{URL}/", f"/{URL}", URL.replace("/", "//"), f"//{URL}//"])
def test_slashes_at_the_end_and_doubled_ones_do_not_matter(app, client, path):
    answer = client.post(data=BODY, environ_overrides={"PATH_INFO": path})
    assert (answer.status_code, answer.data) == (200, b"OK")
    assert kept(app) == [("call-1", "in-progress")]


class TestSigned:
    @pytest.fixture
    def settings(self, settings):
        return settings | {"WEBHOOK_SECRET": ("old", SECRET)}

    def test_a_signed_update_is_taken_from_anywhere(self, client):
        for secret in ("old", SECRET):
            answer = post(client, BODY, signed(BODY, secret), environ_base={"REMOTE_ADDR": "192.0.2.1"})
            assert answer.data == b"OK"

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"X-Webhook-Timestamp": str(int(NOW))},
            {"X-Webhook-Signature": "sha256=" + "0" * 64},
            signed(BODY, "another secret"),
            [*signed(BODY).items(), ("X-Webhook-Signature", signed(BODY)["X-Webhook-Signature"])],
        ],
        ids=["unsigned", "no signature", "no timestamp", "another secret", "two signatures"],
    )
    def test_401_for_what_is_not_signed_even_from_this_machine(self, app, client, headers):
        assert post(client, BODY, headers).status_code == 401
        assert kept(app) == []

    def test_401_before_400(self, client):
        assert post(client, b"{").status_code == 401
        assert post(client, b"{", signed(b"{")).status_code == 400

    def test_a_stale_update_is_refused_and_logged_whole_for_import(self, app, client, caplog, clock):
        body = json.dumps(payload("ended_with_assistant")).encode()
        clock.now += 301
        answer = post(client, body, signed(body))
        assert answer.status_code == 401
        assert "stale" in answer.json["error"]
        expected = json.loads(body)["message"]
        expected["assistant"] = {"metadata": expected["assistant"]["metadata"]}
        del expected["call"]["pipeline"]  # which the schema does not name
        assert [record.update for record in caplog.records if record.levelno == logging.ERROR] == [expected]
        assert kept(app) == []

    def test_a_stale_body_that_is_no_status_update_is_only_refused(self, client, caplog, clock):
        clock.now += 301
        for body in (b"{", b"[1]", json.dumps(payload("other_tool_calls")).encode()):
            assert post(client, body, signed(body)).status_code == 401
        assert not [record for record in caplog.records if record.levelno == logging.ERROR]

    def test_the_freshness_check_can_be_turned_off(self, app, client, clock):
        app.config["WEBHOOK_TOLERANCE"] = 0
        clock.now += 10**6
        assert post(client, BODY, signed(BODY)).data == b"OK"


def test_without_a_secret_only_this_machine_may_post_unless_unsigned_updates_are_allowed(app, client):
    elsewhere = {"environ_base": {"REMOTE_ADDR": "192.0.2.1"}}
    for options in (elsewhere, {"headers": {"Origin": "https://a-page-that-is-open.example"}}):
        answer = post(client, BODY, **options)
        assert answer.status_code == 401
        assert "WEBHOOK_SECRET" in answer.json["error"]
    assert post(client, BODY).data == b"OK"
    app.config["ALLOW_UNSIGNED"] = True
    assert post(client, BODY, **elsewhere).data == b"OK"


class TestRefused:
    def test_413_before_anything_else(self, app, client):
        app.config["WEBHOOK_SECRET"] = (SECRET,)
        answer = post(client, b"x" * (2 * 1024 * 1024 + 1))
        assert answer.status_code == 413
        assert "2097152" in answer.json["error"]

    def test_a_body_of_2_mib_is_not_too_large(self, client):
        assert post(client, BODY.ljust(2 * 1024 * 1024)).data == b"OK"

    @pytest.mark.parametrize("encoding", ["gzip", "Deflate", "identity, br", "x" * 1000])
    def test_415_for_an_encoding_after_413_and_before_401(self, app, client, encoding):
        app.config["WEBHOOK_SECRET"] = (SECRET,)
        answer = post(client, BODY, {"Content-Encoding": encoding})
        assert answer.status_code == 415
        assert "Content-Encoding" in answer.json["error"]
        assert post(client, b" " * (2**21 + 1), {"Content-Encoding": encoding}).status_code == 413

    @pytest.mark.parametrize("encoding", ["", "identity", " Identity"])
    def test_no_encoding_is_taken(self, client, encoding):
        assert post(client, BODY, {"Content-Encoding": encoding}).data == b"OK"

    def test_a_request_that_is_refused_does_not_ask_the_store(self, app, client, monkeypatch):
        app.config["WEBHOOK_SECRET"] = (SECRET,)
        monkeypatch.setattr("app.stores.get_store", Mock(side_effect=AssertionError))
        assert post(client, BODY).status_code == 401
        assert post(client, b"{", signed(b"{")).status_code == 400

    @pytest.mark.parametrize("body", [b"null", b"5", b'"x"', [1], {}, {"message": []}, {"message": None}])
    def test_422_for_json_that_is_no_message(self, client, body):
        answer = post(client, body)
        assert answer.status_code == 422
        assert list(answer.json["fields"]) == ["message"]

    def test_422_for_a_message_without_a_call(self, client):
        answer = post(client, {"message": {"type": "status-update"}})
        assert answer.status_code == 422
        assert list(answer.json["fields"]) == ["message.call"]

    def test_422_names_every_wrong_field_and_logs_the_message_without_the_prompts(self, app, client, caplog):
        document = payload("ended_with_assistant")
        document["message"]["call"] |= {"id": "a\nb", "status": ""}
        document["message"]["timestamp"] = 5
        answer = post(client, document)
        assert answer.status_code == 422
        assert sorted(answer.json["fields"]) == ["message.call.id", "message.call.status", "message.timestamp"]
        [record] = caplog.records
        assert record.levelno == logging.ERROR
        assert list(record.update["assistant"]) == ["metadata"]
        assert record.fields["wrong"] == answer.json["fields"]
        assert record.update["call"] == {"id": "a\nb", "status": "", "type": "inbound_phone_call"}
        assert kept(app) == []

    def test_503_when_it_cannot_be_kept_and_the_message_is_in_the_log(self, app, client, caplog, tmp_path):
        (tmp_path / "calls.db").write_text("not a database, but long enough to be taken for one" * 100)
        answer = post(client, payload("ended_with_assistant"))
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) > 0
        [record] = caplog.records
        assert "calls.db" in record.fields["error"]
        assert record.update["call"]["id"] == "call-_+31612345678_XqaQxRRgAzYc"
        assert list(record.update["assistant"]) == ["metadata"]
        (tmp_path / "calls.db").unlink()
        assert post(client, payload("ended_with_assistant")).data == b"OK"


def test_nothing_of_the_assistant_but_metadata_is_kept_or_logged(app, client, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    assert post(client, payload("ended_with_assistant")).data == b"OK"
    app.extensions["store"].close()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("calls.db*"))
    assert b"90127" in kept
    assert b"must" not in kept and b"gpt-4o" not in kept
    assert "must" not in "".join(str(record.__dict__) for record in caplog.records)
