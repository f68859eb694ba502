import base64
import json
import re
from html.parser import HTMLParser
from unittest.mock import Mock
from urllib.parse import urljoin

import pytest

from stores import StoreError, calls, deliveries, get_store, jobs, refusals, search, updates
from stores.deliveries import Deliveries
from stores.records import Job
from tests.conftest import NOW, SECRET, URL, catch_up, keep_update, message, settle_jobs, signed, update
from work.lanes import get_lane

SAME_ORIGIN = {"Sec-Fetch-Site": "same-origin"}
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
ELSEWHERE = {"REMOTE_ADDR": "192.0.2.1"}


def record(app, call_id="call-1", crm=None, received_at=NOW - 90):
    """Keep an update whose event is logged and whose job for the CRM is as given, or leased."""
    with app.app_context():
        one = update(call_id=call_id, received_at=received_at)
        update_id = keep_update(get_store(), one, ["log_event", "update_crm"], NOW + 60)
        settled = [Job("log_event", "done", None, 1), *([crm] if crm else [])]
        settle_jobs(get_store(), (update_id, NOW + 60, settled))


def pending(due_at=NOW + 30, error="answered 500"):
    return Job("update_crm", "pending", due_at, 1, NOW, error)


def failed(attempts=1, error="answered 404"):
    return Job("update_crm", "failed", None, attempts, NOW, error, NOW)


def test_a_new_receiver_is_healthy_and_says_the_important_first(client):
    health = {
        "status": "ok",
        "store": "sqlite",
        "pending": 0,
        "failed": 0,
        "oldest_pending_s": None,
        "last_update_at": None,
        "spooled": 0,
        "errors": {},
    }
    assert [*client.get("/healthz").json.items()] == [*health.items()]


def test_health_tells_a_stranger_counts_and_who_has_access_the_reasons(app, client):
    record(app, "a", pending())
    record(app, "b", failed(error="answered 500: no such path /secret"), received_at=NOW - 100)
    answer = client.get("/healthz", environ_base=ELSEWHERE)
    assert (answer.status_code, answer.json) == (
        200,
        {
            "status": "ok",
            "store": "sqlite",
            "pending": 1,
            "failed": 1,
            "oldest_pending_s": 90,
            "last_update_at": "2027-01-15T08:28:30.000Z",
            "spooled": 0,
        },
    )
    assert client.get("/healthz").json["errors"] == {"update_crm": "answered 500: no such path /secret"}


def test_health_looks_at_the_store_for_strangers_once_a_second_and_writes_nothing(client, clock, app, monkeypatch):
    app.extensions["store"].now()
    looks = Mock(wraps=jobs.backlog)
    monkeypatch.setattr(jobs, "backlog", looks)
    monkeypatch.setattr("stores.sqlite.SQLite.execute", Mock(side_effect=AssertionError))
    for _ in range(10):
        assert client.get("/healthz", environ_base=ELSEWHERE).status_code == 200
        clock.now += 0.25
    assert looks.call_count == 3
    assert client.get("/healthz").status_code == 200
    assert looks.call_count == 4


def test_a_store_that_does_not_answer_is_told_with_503_until_it_answers_again(client, tmp_path, clock):
    client.post(URL, json=message())
    for file in tmp_path.glob("calls.db*"):
        file.unlink()
    (tmp_path / "calls.db").write_text("not a database, but long enough to be taken for one" * 100)
    for path in ("/healthz", "/", "/live", "/calls.json", "/calls?id=call-1"):
        answer = client.get(path, headers=BROWSER)
        assert answer.status_code == 503
        assert "calls.db" in answer.text and "+316" not in answer.text
    answer = client.get("/healthz", environ_base=ELSEWHERE)
    assert (answer.status_code, answer.json["status"], answer.json["pending"]) == (503, "error", None)
    assert "calls.db" not in answer.text
    (tmp_path / "calls.db").unlink()
    clock.now += 1
    assert client.get("/healthz", environ_base=ELSEWHERE).status_code == 200


class TestAnUpdateThatCouldNotBeKept:
    @pytest.fixture(autouse=True)
    def not_kept(self, client, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr("app.dispatch", Mock(side_effect=StoreError("the disk is full")))
            assert client.post(URL, json=message()).status_code == 503

    def test_is_told_for_a_minute_though_the_store_can_be_read(self, client, clock):
        for seconds, status in ((0, 503), (59, 503), (1, 200)):
            clock.now += seconds
            assert client.get("/healthz", environ_base=ELSEWHERE).status_code == status

    def test_is_told_until_one_is_kept(self, client, clock):
        for status in (503, 200):
            assert client.get("/healthz", environ_base=ELSEWHERE).status_code == status
            clock.now += 1
            client.post(URL, json=message())


def test_calls_are_active_until_they_end_or_are_stale_and_recent_all_along(client, clock):
    client.post(URL, json=message(call_id="old", timestamp="2027-01-14T20:00:00Z"))
    clock.now += 12 * 3600
    client.post(URL, json=message(call_id="on", timestamp="2027-01-15T20:00:00Z"))
    client.post(URL, json=message(call_id="over", timestamp="2027-01-15T20:00:00Z"))
    client.post(URL, json=message("ended", "over", timestamp="2027-01-15T20:01:00Z"))
    calls = client.get("/calls.json").json
    assert calls["counts"] == {"active": 1, "stale": 1}
    assert {name: [call["id"] for call in calls[name]] for name in ("active", "stale", "recent")} == {
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
        "start_received_at": "2027-01-15T20:30:00.000Z",
        "ended_at": "2027-01-15T20:01:00.000Z",
        "end_received_at": "2027-01-15T20:30:00.000Z",
        "checked_at": None,
        "unknown": False,
        "seconds": 60,
        "error": None,
        "end_reason": None,
        "received_at": "2027-01-15T20:30:00.000Z",
    }
    text = page(client).text
    assert "Active calls 1" in text
    assert "Stale calls 1 Started 12 hours ago or longer" in text
    client.post(URL, json=message("ended", "old"))
    assert client.get("/calls.json").json["counts"] == {"active": 1, "stale": 0}


@pytest.mark.parametrize("elsewhere", [ELSEWHERE, {"HTTP_X_FORWARDED_FOR": "192.0.2.1"}])
def test_without_a_password_all_but_this_machine_only_see_what_to_set(client, elsewhere):
    client.post(URL, json=message())
    for path in ("/", "/live", "/calls?id=call-1", "/export", "/calls.json"):
        answer = client.get(path, headers=BROWSER, environ_base=elsewhere)
        assert (answer.status_code, answer.mimetype) == (403, "text/html")
        assert "set DASHBOARD_PASSWORD" in answer.text and "+316" not in answer.text
        answer = client.get(path, environ_base=elsewhere)
        assert (answer.status_code, list(answer.json)) == (403, ["error"])
        assert "set DASHBOARD_PASSWORD" in answer.json["error"]
    with client.get("/static/dashboard.css", environ_base=elsewhere) as style:
        assert style.status_code == 200


class TestPassword:
    @pytest.fixture
    def settings(self, settings):
        return settings | {"DASHBOARD_PASSWORD": "pässword"}

    @pytest.mark.parametrize("user", ["", "anyone"])
    def test_with_the_password_calls_are_seen_from_anywhere(self, client, user):
        assert client.get("/calls.json", auth=(user, "pässword"), environ_base=ELSEWHERE).status_code == 200

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

    def test_wrong_ones_lock_nobody_out(self, client):
        for _ in range(200):
            assert client.get("/", auth=("", "guess")).status_code == 401
        assert client.get("/calls.json", auth=("", "pässword")).status_code == 200

    def test_health_tells_the_reasons_with_it_only(self, client):
        assert "errors" not in client.get("/healthz").json
        assert "errors" not in client.get("/healthz", auth=("", "guess")).json
        assert "errors" in client.get("/healthz", auth=("", "pässword"), environ_base=ELSEWHERE).json


class Page(HTMLParser):
    """What a page shows: its text, its tags with their attributes, and where its links lead, by id if they have one."""

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.links = "", [], {}
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, attributes := dict(attributes)))
        if tag == "a":
            assert attributes.get("id") not in self.links
            self.links[attributes.get("id", attributes["href"])] = attributes["href"]
        self.text += "" if tag in ("a", "b", "bdi", "code", "q", "span", "time", "tspan") else " "

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def recent(self):
        """The ids of the calls in the list."""
        return [link.removeprefix("recent-") for link in self.links if link.startswith("recent-")]


def page(client, path="/", **options):
    answer = client.get(path, headers=BROWSER, **options)
    assert answer.status_code == 200
    return Page(answer.text)


def test_the_page_shows_active_and_recent_calls_and_figures(client):
    client.post(URL, json=message(call_id="on"))
    client.post(URL, json=message(call_id="over"))
    client.post(URL, json=message("ended-with-error", "over", timestamp="2025-12-13T12:01:05Z", error="SIP 486"))
    text = page(client).text
    assert "Active calls 1 Customer" in text
    assert "+31612345678 HMS Sovereign Demo +31850835037 inbound" in text
    assert "Calls 2 Errors 1 Error rate 50.0 % Mean duration 1 min 5 s" in text
    assert "08:00 UTC: 2 calls, 1 error" in text
    assert "ended with error SIP 486" in text
    assert "Deliveries of the last 24 hours All delivered Handler At once Later than 5 s Failed Longest delay" in text


def test_five_active_and_five_stale_calls_are_shown_and_lead_to_all(client, clock):
    for number in range(13):
        client.post(URL, json=message(call_id=f"{number:02}"))
        clock.now += 12 * 3600 + 60 if number == 5 else 1
    overview = page(client)
    assert "Active calls 7" in overview.text and "Stale calls 6" in overview.text
    for part, total in (("active", 7), ("stale", 6)):
        assert len([link for link in overview.links if link.startswith(f"{part.capitalize()}-")]) == 5
        assert f" All {total} " in overview.text
        assert len(page(client, overview.links[f"all-{part}"]).recent) == total
    answer = client.get("/calls.json").json
    assert answer["counts"] == {"active": 7, "stale": 6}
    assert [len(answer[name]) for name in ("active", "stale", "recent")] == [7, 6, 13]


@pytest.mark.parametrize("call_id", [".", "..", "../export", "a/../../export", "/", "//example.com", "a b?c&d=e#f%2e+"])
def test_the_link_of_a_call_leads_to_it(client, call_id):
    client.post(URL, json=message(call_id=call_id))
    for part in ("Active", "recent"):
        link = urljoin("http://localhost/", page(client).links[f"{part}-{call_id}"])
        assert f"Call id {call_id}" in page(client, link).text


HOSTILE = "<script>alert(1)</script>"
BREAKING = '"><img src=x onerror=alert(1)>'


def test_what_senders_write_is_text(app, client):
    call_id = f"{BREAKING}/../?a=b#c%"
    fields = {"phone_number": {"number": BREAKING, "name": HOSTILE}, "customer": {"number": HOSTILE}}
    client.post(URL, json=message(call_id=call_id, **fields))
    client.post(URL, json=message("ended-with-error", call_id, error=BREAKING, end_reason=HOSTILE, **fields))
    client.post(URL, json=message(call_id="on", **fields))
    record(app, "failing", failed(error=HOSTILE))
    for path in ("/", "/live", "/calls?id=failing", page(client).links[f"recent-{call_id}"]):
        answer = page(client, path)
        assert HOSTILE in answer.text
        assert answer.all("img") == []
        assert {script.get("src") for script in answer.all("script")} <= {"/static/dashboard.js"}
    assert f"Call id {call_id}" in answer.text


def test_pages_have_no_inline_script_or_style_and_nothing_from_elsewhere(app, client):
    record(app, "call-1", failed())
    client.post(URL, json=message("ended-with-error", error="SIP 486"))
    for path in ("/", "/calls?id=call-1"):
        for tag, attributes in page(client, path).tags:
            assert tag != "style"
            assert not [name for name in attributes if name == "style" or name.startswith("on")]
            assert not [name for name in ("src", "href", "action") if "//" in (attributes.get(name) or "")]


@pytest.mark.parametrize("path", ["/", "/live", "/calls.json", "/calls?id=none", "/export", "/healthz"])
@pytest.mark.parametrize("environ", [{}, ELSEWHERE])
def test_every_answer_has_the_security_headers(client, path, environ):
    headers = client.get(path, environ_base=environ).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    assert headers["X-Frame-Options"] == "DENY"
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_fragment_is_304_until_something_changes(client):
    client.post(URL, json=message())
    known = {"If-None-Match": client.get("/live").headers["ETag"]}
    again = client.get("/live", headers=known)
    assert (again.status_code, again.data) == (304, b"")
    client.post(URL, json=message("ended"))
    changed = client.get("/live", headers=known)
    assert changed.status_code == 200
    assert changed.headers["ETag"] != known["If-None-Match"]
    assert "<html" not in changed.text


def test_nothing_is_looked_up_for_who_has_it_until_an_update_comes_or_for_ten_seconds(client, clock, monkeypatch):
    looks = Mock(wraps=search.find)
    monkeypatch.setattr(search, "find", looks)
    known = {"If-None-Match": client.get("/live").headers["ETag"]}
    assert client.get("/live", headers=known).status_code == 304
    assert looks.call_count == 1
    clock.now += 10
    assert client.get("/live", headers=known).status_code == 200
    assert looks.call_count == 2


@pytest.mark.parametrize("search", [" a b ", "+31 6 1111 1111"])
def test_a_call_is_found_by_number_or_id(client, search):
    client.post(URL, json=message(call_id="a b", customer={"number": "+31611111111"}))
    client.post(URL, json=message(call_id="other", customer={"number": "+31622222222"}))
    for path in ("/", "/live"):
        assert page(client, path, query_string={"search": search}).recent == ["a b"]
    missing = page(client, "/", query_string={"search": "+31600000000"})
    assert "No call with this number or id is kept" in missing.text
    [live] = [attributes["data-live"] for _, attributes in missing.tags if "data-live" in attributes]
    assert live == "/live?search=%2B31600000000"


class TestTimeline:
    """The page of a call, with a CRM and Slack."""

    @pytest.fixture
    def settings(self, settings):
        return settings | {"CRM_WEBHOOK_URL": "http://crm.test", "SLACK_WEBHOOK_URL": "http://slack.test"}

    def text(self, client):
        return page(client, "/calls?id=call-1").text

    def keep(self, app, handlers, *jobs, **fields):
        """Keep an update that was given to `handlers`, with `jobs`. Gives its id."""
        return updates.keep(app.extensions["store"], update(**{"received_at": NOW - 90} | fields), jobs, handlers)

    def attempt(self, app, update_id, at, error, seconds=2.04):
        sql = "INSERT INTO attempts VALUES (:id, 'update_crm', :at, :seconds, :error)"
        app.extensions["store"].execute(sql, {"id": update_id, "at": at, "seconds": seconds, "error": error})

    def test_it_tells_what_each_handler_did_or_had_no_part_in(self, app, client):
        self.keep(app, ["log_event", "gone"])
        text = self.text(client)
        assert "in progress received 2027-01-15 08:28:30 Handler" in text
        assert "log_event done at once gone done at once alert_on_error nothing to do update_crm was off" in text
        assert "track_call" not in text  # its setting is unset
        assert '"number": "+31612345678"' in text

    @pytest.mark.parametrize(
        ("unknown", "end"),
        [
            (False, "Ended not received; still on when the provider was asked, 2027-01-15 08:30"),
            (True, "Ended not received; the provider knows no such call"),
        ],
    )
    def test_it_tells_what_the_provider_said_of_a_call_without_an_end(self, app, client, unknown, end):
        self.keep(app, ["log_event"])
        calls.note_checked(app.extensions["store"], "call-1", unknown=unknown)
        assert end in self.text(client)

    def test_what_an_import_does_not_say_is_not_known(self, app, client):
        self.keep(app, None)
        text = self.text(client)
        assert "log_event not known, as it was imported alert_on_error nothing to do update_crm not known" in text
        assert "done" not in text

    @pytest.mark.parametrize(
        ("job", "state"),
        [
            (pending(), "pending, next try 2027-01-15 08:30:30, after 1 attempt answered 500 Run again"),
            (Job("update_crm", "leased", NOW + 9), "pending, in hand Run again"),
            (failed(9), "failed at 2027-01-15 08:30:00, after 9 attempts answered 404 Run again"),
            (Job("update_crm", "done", None, 0, done_at=NOW), "done at 2027-01-15 08:30:00 log_event was off"),
            (
                Job("update_crm", "done", None, 11, done_at=NOW),
                "done at 2027-01-15 08:30:00, attempt 11 log_event was off",
            ),
            (Job("gone", "pending", NOW), "gone pending, as it is off here log_event was off"),
        ],
    )
    def test_it_tells_how_a_job_is(self, app, client, job, state):
        self.keep(app, ["update_crm"], job)
        assert state in self.text(client)

    def test_it_has_every_attempt_in_the_order_of_time(self, app, client):
        first = self.keep(app, ["update_crm"], Job("update_crm", "done", None, 3, NOW, "answered 502", NOW + 90))
        self.attempt(app, first, NOW, "answered 500: out of order")
        self.attempt(app, first, NOW + 40, "no answer in 30 s", 30)
        self.keep(app, ["update_crm"], status="ended", received_at=NOW + 20)
        events = self.text(client).split("What happened ")[1]
        positions = [
            events.index(event)
            for event in (
                "in progress received 2027-01-15 08:28:30",
                "update_crm done at 2027-01-15 08:31:30, attempt 3 before that answered 502",
                "update_crm failed to deliver in progress at 2027-01-15 08:30:00, after 2.0 s:"
                " answered 500: out of order",
                "ended received 2027-01-15 08:30:20",
                "update_crm failed to deliver in progress at 2027-01-15 08:30:40, after 30.0 s: no",
                "update_crm delivered in progress at 2027-01-15 08:31:30",
            )
        ]
        assert positions == sorted(positions)

    def test_run_again_does_not_rewrite_what_was(self, app, client):
        first = self.keep(app, ["update_crm"], failed(1, "answered 410"))
        self.attempt(app, first, NOW, "answered 410")
        client.post("/run-again", data={"handler": "update_crm", "call_id": "call-1"}, headers=SAME_ORIGIN)
        text = self.text(client)
        assert "pending, next try 2027-01-15 08:30:00, after 1 attempt" in text
        assert "update_crm failed to deliver in progress at 2027-01-15 08:30:00" in text
        db = app.extensions["store"]
        db.execute("UPDATE jobs SET state = 'done', attempts = 2, due_at = NULL, done_at = :at", {"at": NOW + 5})
        assert "update_crm done at 2027-01-15 08:30:05, attempt 2" in self.text(client)

    def test_repeats_and_what_was_left_out_are_told(self, app, client):
        self.keep(app, [])
        db = app.extensions["store"]
        db.execute(
            "UPDATE updates SET times = 3, last_received_at = :at,"
            ' message = replace(message, \'"type": "status\', \'"assistant": {"metadata_left_out":'
            ' "over 64 KiB"}, "type": "status\')',
            {"at": NOW},
        )
        text = self.text(client)
        assert "received 2027-01-15 08:28:30, 3 times, last 2027-01-15 08:30:00" in text
        assert "Its metadata was left out: over 64 KiB" in text

    def test_an_error_is_shown_whole(self, app, client):
        self.keep(app, [], status="ended-with-error", error="x" * 2999 + "!")
        assert f"Error {'x' * 2999}!" in self.text(client)
        assert f"{'x' * 119}… " in page(client).text

    def test_it_is_304_until_something_changes(self, app, client):
        self.keep(app, [])
        known = {"If-None-Match": client.get("/calls?id=call-1").headers["ETag"]}
        assert client.get("/calls?id=call-1", headers=known).status_code == 304
        self.keep(app, [], status="ended")
        assert client.get("/calls?id=call-1", headers=known).status_code == 200


def test_what_was_done_after_a_retry_is_not_pending(app, client):
    record(app, "call-1", Job("update_crm", "done", None, 3, NOW, "answered 502", NOW + 90))
    text = page(client, "/calls?id=call-1").text
    assert "pending" not in text and "Run again" not in text.split("update_crm", 1)[1]
    assert "Needs attention" not in page(client).text
    health = client.get("/healthz").json
    assert (health["pending"], health["failed"], health["oldest_pending_s"]) == (0, 0, None)


def test_a_call_that_is_not_kept_is_404(client):
    answer = client.get("/calls?id=none", headers=BROWSER)
    assert answer.status_code == 404
    assert "No call with this id is kept" in answer.text


def test_a_page_that_is_not_there_looks_like_the_others_and_leads_home(client):
    answer = client.get("/nowhere", headers=BROWSER)
    assert answer.status_code == 404
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
    missing = Page(answer.text)
    assert "There is no such page." in missing.text
    assert "/" in missing.links.values() and missing.all("input")[0]["name"] == "search"
    assert client.get("/nowhere").mimetype == client.post("/nowhere", headers=BROWSER).mimetype == "application/json"


class TestRunAgain:
    @pytest.fixture
    def settings(self, settings, service):
        return settings | {"CRM_WEBHOOK_URL": service.url}

    @pytest.fixture(autouse=True)
    def failed(self, app):
        record(app, "a", failed(9))

    def test_it_is_offered_where_failed_work_is_told(self, client):
        assert "Last error: answered 404. Put right what is wrong, then run it again. Run again" in page(client).text

    @pytest.mark.parametrize("headers", [SAME_ORIGIN, {"Origin": "http://localhost"}, {"Origin": "https://localhost"}])
    @pytest.mark.parametrize(("form", "location"), [({"call_id": "a"}, "/calls?id=a"), ({}, "/")])
    def test_failed_work_is_due_at_once_and_done_by_the_worker(self, app, client, service, headers, form, location):
        answer = client.post("/run-again", data={"handler": "update_crm", **form}, headers=headers)
        assert (answer.status_code, answer.location) == (303, location)
        assert "update_crm pending" in page(client, "/calls?id=a").text
        assert service.bodies == []
        with app.app_context():
            assert get_lane("update_crm").work.is_set()
            catch_up(app)
        assert [body["call_id"] for body in service.bodies] == ["a"]
        assert "done at 2027-01-15 08:30:00" in page(client, "/calls?id=a").text

    def test_of_a_backlog_only_the_call_that_was_asked_for_is_run_again(self, app, client, service):
        for name in "bcd":
            record(app, name, failed(9))
        client.post("/run-again", data={"handler": "update_crm", "call_id": "d"}, headers=SAME_ORIGIN)
        with app.app_context():
            catch_up(app)
        assert [body["call_id"] for body in service.bodies] == ["d"]

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "none"},
            {"Origin": "http://evil.example"},
            {"Origin": "http://localhost:81"},
            {"Origin": "null"},
            {"Origin": "http://["},
        ],
    )
    def test_only_our_own_pages_can_ask_for_it(self, client, service, headers):
        answer = client.post("/run-again", data={"handler": "update_crm", "call_id": "a"}, headers=headers)
        assert answer.status_code == 403
        assert service.bodies == []
        assert "failed" in page(client, "/calls?id=a").text

    def test_other_calls_and_handlers_are_left_alone(self, client, service):
        client.post("/run-again", data={"handler": "update_crm", "call_id": "b"}, headers=SAME_ORIGIN)
        client.post("/run-again", data={"handler": "log_event", "call_id": "a"}, headers=SAME_ORIGIN)
        assert client.post("/run-again", data={"handler": "no such"}, headers=SAME_ORIGIN).status_code == 404
        assert client.post("/run-again", headers=SAME_ORIGIN).status_code == 404
        assert service.bodies == []


def test_the_download_is_the_export_and_is_streamed(app, client, runner):
    for call_id in ("a", "b"):
        record(app, call_id)
    answer = client.get("/export")
    assert answer.is_streamed
    assert page(client).links["/export"]
    assert answer.text == runner.invoke(args=["export"]).stdout
    assert [json.loads(line)["call_id"] for line in answer.text.splitlines()] == ["a", "b"]


def test_a_new_receiver_says_how_to_send_the_first_update(client):
    text = page(client).text
    assert "No updates yet" in text
    assert "The provider needs an https address that it can reach: deploy the receiver, or open a tunnel" in text
    assert "webhook_url to the address" in text
    assert "WEBHOOK_SECRET is not set." in text
    assert ".venv/bin/flask simulate --url http://localhost The first call" in text
    assert "Active calls" not in text and "Last 24 hours" not in text
    client.post(URL, json=message())
    assert "No updates yet" not in page(client).text


def test_behind_a_proxy_it_tells_the_https_url(app):
    app.config.update(DASHBOARD_PASSWORD="x", WEBHOOK_SECRET=(SECRET,))
    headers = BROWSER | {"X-Forwarded-Proto": "https", "Host": "calls.example"}
    text = Page(app.test_client().get("/", headers=headers, auth=("", "x")).text).text
    assert "webhook_url to https://calls.example/webhooks/status-update" in text
    assert "WEBHOOK_SECRET is set" in text
    assert ".venv/bin/flask simulate --url https://calls.example" in text


class TestAttention:
    @pytest.fixture
    def settings(self, settings):
        return settings | {
            "DASHBOARD_PASSWORD": "x",
            "WEBHOOK_SECRET": (SECRET,),
            "CRM_WEBHOOK_URL": "http://127.0.0.1:9/",
        }

    def attention(self, client):
        return Page(client.get("/live", auth=("", "x")).text.split('<section id="active"')[0]).text

    def test_there_is_none_when_all_is_well(self, client):
        body = json.dumps(message()).encode()
        assert client.post(URL, data=body, headers=signed(body)).data == b"OK"
        assert self.attention(client) == ""

    def test_work_pending_for_a_minute_is_told_with_its_last_error(self, app, client, clock):
        record(app, "a", pending(NOW + 9), received_at=NOW - 60)
        assert self.attention(client) == ""
        clock.now += 1
        assert "update_crm: 1 update pending since 2027-01-15 08:29. Last error: answered 500." in self.attention(
            client
        )

    def test_failed_work_is_told(self, app, client):
        record(app, "a", failed())
        record(app, "b", pending(NOW + 9, None))
        text = self.attention(client)
        assert "update_crm: 1 update failed, 1 update pending since" in text
        assert "Last error: answered 404. Put right what is wrong, then run it again." in text

    def test_refusals_of_the_last_24_hours_are_told(self, app, client):
        with app.app_context():
            refusals.add(get_store(), "stale", 1, NOW - 24 * 3600)
            refusals.add(get_store(), "wrong signature", 12, NOW - 60)
        text = self.attention(client)
        assert "401 wrong signature, 12 times, last 2027-01-15 08:29. WEBHOOK_SECRET must be" in text
        assert "stale" not in text

    def test_a_silence_is_told(self, app, client, clock):
        app.config["ALERT_SILENCE"] = 8
        record(app, received_at=NOW - 90)
        assert "No update has come" not in self.attention(client)
        clock.now += 8 * 3600
        assert "No update has come for 8 h 1 min." in self.attention(client)

    def test_unsigned_updates_and_a_throw_away_disk_are_told(self, app, client):
        record(app)
        app.config.update(ALLOW_UNSIGNED=True, WEBHOOK_SECRET=(), EPHEMERAL_DISK=True)
        assert "Anyone can post updates" in self.attention(client)
        assert "disk does not survive a restart" in self.attention(client)


def test_what_became_of_updates_is_counted_by_handler(store):
    assert deliveries.since(store, 0) == {}
    done = [Job("update_crm", "done", None, 2, done_at=NOW + seconds) for seconds in (5, 6, 7)]
    its_jobs = [[], [], *([job] for job in done), [failed()], [pending()]]
    for number, job in enumerate(its_jobs):
        updates.keep(store, update(call_id=f"{number}"), job, ["update_crm"])
    updates.keep(store, update(call_id="imported"), [failed()], None)
    updates.keep(store, update(call_id="before", received_at=NOW - 1), [], ["update_crm"])
    updates.keep(store, update(call_id="other"), [], ["log_event", "x"])
    idle = Deliveries(1, 0, 0, None)
    assert deliveries.since(store, NOW) == {"update_crm": (3, 2, 1, 7), "log_event": idle, "x": idle}
    assert (calls.count(store), updates.count(store)) == (10, 10)


class TestDeliveries:
    @pytest.fixture
    def settings(self, settings):
        return settings | {"CRM_WEBHOOK_URL": "http://crm.test"}

    def deliveries(self, client):
        return page(client).text.split("Longest delay ")[1].split(" Last 24 hours")[0]

    def test_those_at_once_later_and_failed_are_told_apart(self, app, client, clock):
        record(app, "quick", Job("update_crm", "done", None, 1, done_at=NOW - 86))
        record(app, "later", Job("update_crm", "done", None, 2, done_at=NOW + 17))
        record(app, "failed", failed())
        record(app, "pending", pending())
        record(app, "yesterday", failed(), received_at=NOW - 25 * 3600)
        assert self.deliveries(client) == "log_event 4 0 0 – update_crm 1 1 1 1 min 47 s"
        assert "Not all delivered" in page(client).text

    def test_they_are_counted_once_a_minute(self, app, client, clock):
        record(app, "a")
        assert self.deliveries(client).startswith("log_event 1 ")
        record(app, "b")
        clock.now += 29
        assert self.deliveries(client).startswith("log_event 1 ")
        clock.now += 31
        assert self.deliveries(client).startswith("log_event 2 ")

    def test_what_has_waited_for_five_seconds_is_not_delivered(self, app, client, clock):
        record(app, "a", pending(), received_at=NOW)
        assert " All delivered" in page(client).text
        clock.now += 5.1
        assert "Not all delivered" in page(client).text


class TestMetrics:
    @pytest.fixture
    def settings(self, settings):
        return settings | {"DASHBOARD_PASSWORD": "x", "CRM_WEBHOOK_URL": "http://crm.test"}

    def lines(self, client):
        answer = client.get("/metrics", auth=("", "x"))
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return answer.text.splitlines()

    def test_they_are_behind_the_password(self, client):
        assert client.get("/metrics").status_code == 401

    def test_every_gauge_has_a_type_and_a_value(self, app, client, clock):
        record(app, "a", pending(), received_at=NOW - 90.5)
        record(app, "b", failed(), received_at=NOW - 100)
        with app.app_context():
            keep_update(get_store(), update("ended", "b", NOW - 9), [])
            refusals.add(get_store(), "unsigned", 3, NOW)
            refusals.add(get_store(), "stale", 9, NOW - 7200)
        lines = self.lines(client)
        assert {
            "receiver_calls_active 1",
            "receiver_calls_kept 2",
            "receiver_updates_kept 3",
            "receiver_updates_spooled 0",
            "receiver_seconds_since_update 9.0",
            'receiver_jobs_pending{handler="update_crm"} 1',
            'receiver_jobs_pending{handler="log_event"} 0',
            'receiver_jobs_failed{handler="update_crm"} 1',
            'receiver_oldest_pending_seconds{handler="update_crm"} 90.5',
            'receiver_oldest_pending_seconds{handler="log_event"} 0.0',
            'receiver_refusals_last_hour{reason="unsigned"} 3',
            'receiver_refusals_last_hour{reason="stale"} 0',
            "# TYPE receiver_calls_active gauge",
        } <= set(lines)
        names = [line.split()[2] for line in lines if line.startswith("# TYPE ")]
        assert names == list(dict.fromkeys(re.split("[ {]", line)[0] for line in lines if line[0] != "#"))

    def test_without_updates_nothing_says_when_the_last_one_came(self, client):
        lines = self.lines(client)
        assert "receiver_calls_kept 0" in lines
        assert not [line for line in lines if line.startswith("receiver_seconds_since")]

    def test_a_label_ends_where_it_should(self, app, client):
        with app.app_context():
            keep_update(get_store(), update(), ['a"b\\c\nd'])
        assert 'receiver_jobs_pending{handler="a\\"b\\\\c\\nd"} 1' in self.lines(client)


@pytest.mark.parametrize("timestamp", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z"])
def test_no_time_at_an_end_of_the_calendar_breaks_a_page(client, timestamp):
    for taken in (timestamp, timestamp.replace("0001", "0002").replace("9999-", "9998-")):
        client.post(URL, json=message(timestamp=taken))
        client.post(URL, json=message("ended", timestamp=taken))
        for path in ("/", "/live", "/calls.json", "/export"):
            assert client.get(path).status_code == 200
    assert client.get("/calls?id=call-1").status_code == 200
