import json
import re
import threading

import pytest
import requests

import handlers
from commands.client import connection_error, webhook_url
from commands.simulate import made_up_calls
from handlers import active_calls
from handlers.errors import Retry
from stores import get_store, updates
from stores.records import Job
from tests.conftest import NOW, PASSWORD, SECRET, URL, keep_update, message, settle_jobs, update
from tests.loopback import free_port
from work import lanes

REFUSED = "[Errno 111] Connection refused"


def record(app, call_id="call-1", job=None):
    with app.app_context():
        update_id = keep_update(get_store(), update(call_id=call_id), ["update_crm"], NOW + 60)
        settle_jobs(get_store(), (update_id, NOW + 60, [job or Job("update_crm", "done", None, 1)]))


def pending(due_at=NOW + 30):
    return Job("update_crm", "pending", due_at, 1, NOW, "answered 500")


FAILED = Job("update_crm", "failed", None, 1, NOW, "answered 404", NOW)


def test_check_tells_what_is_on_and_how_durable_the_store_is(app, runner):
    app.config |= {"WEBHOOK_SECRET": ("hush",), "DASHBOARD_PASSWORD": "hush"}
    result = runner.invoke(args=["check"])
    assert result.exit_code == 0
    assert "on:    WEBHOOK_SECRET, DASHBOARD_PASSWORD\n" in result.output
    assert "survives a loss of power" in result.output
    assert "hush" not in result.output


def test_check_asks_each_service_that_is_set_whether_it_can_be_reached(app, runner, service, valkey):
    secret = f"user:hush@127.0.0.1:{free_port()}/hush"
    services = {"CRM_WEBHOOK_URL": f"{service.url}/hook", "SLACK_WEBHOOK_URL": f"https://{secret}"}
    app.config |= services | {"REDIS_URL": valkey.url}
    active_calls.init_app(app)
    result = runner.invoke(args=["check"])
    assert result.exit_code == 0
    assert re.findall(r"^(?:redis|crm|slack): .*$", result.stdout, re.MULTILINE) == [
        "redis: reachable",
        "crm:   reachable",
        f"slack: {REFUSED}",
    ]
    assert "hush" not in result.output
    assert [(path, body) for path, _, body in service.requests] == []


def test_check_tells_why_redis_does_not_answer(app, runner, valkey):
    valkey.acl_setuser("limited", enabled=True, passwords=["+hush"], commands=["+ping"])
    wrong = valkey.url.replace("//", "//limited:hush2@")
    for url, words in ((f"redis://127.0.0.1:{free_port()}", "Connection refused"), (wrong, "password")):
        app.config["REDIS_URL"] = url
        active_calls.init_app(app)
        result = runner.invoke(args=["check"])
        assert result.exit_code == 0
        assert re.search(rf"^redis: .*{words}.*check REDIS_URL", result.stdout, re.MULTILINE)
        assert "hush" not in result.output


def test_unset_services_are_not_asked(runner):
    assert not re.search("^(redis|crm|slack):", runner.invoke(args=["check"]).stdout, re.MULTILINE)


def test_check_tells_why_a_host_cannot_be_reached():
    assert "Name or service not known" in connection_error("https://nobody.invalid/hook")
    assert connection_error(f"http://{'a' * 64}.invalid/hook")


def test_commands_are_known_by_their_user_agent(runner, service):
    assert runner.invoke(args=["check", "--url", service.url]).exit_code == 1
    assert {headers["User-Agent"] for path, headers, _ in service.requests if path != "/"} == {
        "call-status-receiver-command"
    }


@pytest.mark.parametrize("command", [["check", "--url"], ["simulate", "--url"]])
def test_where_nothing_listens_a_command_ends_in_one_line(runner, command):
    address = f"127.0.0.1:{free_port()}"
    result = runner.invoke(args=[*command, f"http://user:hush@{address}"])
    assert (result.exit_code, result.output) == (1, f"Error: no connection to {address}: {REFUSED}\n")


def test_check_sends_nothing_without_a_url(runner):
    result = runner.invoke(args=["check", "--send"])
    assert result.exit_code == 2
    assert "--send goes with --url" in result.output


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "https://[bad", "http://127.0.0.1:99999", "127.0.0.1:8000"])
def test_what_is_no_url_is_refused(runner, url):
    result = runner.invoke(args=["simulate", "--url", url])
    assert result.exit_code == 2
    assert "is not an http:// or https:// URL" in result.output


def test_export_prints_a_line_for_every_kept_update(app, runner, clock):
    record(app, "a", Job("update_crm", "done", None, 3, NOW, "answered 502", NOW + 90))
    record(app, "b", pending())
    clock.now += 0.5
    record(app, "c", FAILED)
    [a, b, c] = [json.loads(line) for line in runner.invoke(args=["export"]).stdout.splitlines()]
    tried, done = "2027-01-15T08:30:00.000Z", "2027-01-15T08:31:30.000Z"
    job = {"handler": "update_crm", "state": "done", "attempts": 3, "error": "answered 502"}
    assert a["jobs"] == [job | {"due_at": None, "first_tried_at": tried, "done_at": done}]
    assert (a["message"]["call"]["id"], a["pending"], a["failed"]) == ("a", [], [])
    assert (b["call_id"], b["pending"], b["failed"]) == ("b", ["update_crm"], [])
    assert c | {"message": None, "jobs": None} == {
        "call_id": "c",
        "status": "in-progress",
        "timestamp": "2025-12-13T12:00:00.000Z",
        "received_at": "2027-01-15T08:30:00.000Z",
        "kept_at": "2027-01-15T08:30:00.500Z",
        "times": 1,
        "last_received_at": "2027-01-15T08:30:00.000Z",
        "handlers": ["update_crm"],
        "pending": [],
        "failed": ["update_crm"],
        "jobs": None,
        "message": None,
    }


@pytest.mark.parametrize("since", ["2027-01-15T08:30:00.500", "2027-01-15T09:30:00.500+01:00"])
def test_export_can_start_at_a_time(app, runner, since, clock):
    record(app, "a")
    clock.now += 0.5
    record(app, "b")
    lines = runner.invoke(args=["export", "--since", since]).stdout.splitlines()
    assert [json.loads(line)["call_id"] for line in lines] == ["b"]


def test_export_refuses_what_is_no_time(runner):
    result = runner.invoke(args=["export", "--since", "yesterday"])
    assert result.exit_code == 2
    assert "Invalid value for '--since'" in result.output


def test_retry_does_once_what_is_pending_or_failed(app, runner, service):
    app.config["CRM_WEBHOOK_URL"] = service.url
    lanes.init_app(app)
    record(app, "a", pending(NOW + 3600))
    record(app, "b", FAILED)
    failed = "update_crm: 0 pending, 1 failed (its service answers)\n"
    assert runner.invoke(args=["retry"]).stdout == f"1 made due, 0 still pending\n{failed}"
    assert runner.invoke(args=["retry"]).stdout == f"0 made due, 0 still pending\n{failed}"
    assert runner.invoke(args=["retry", "--failed"]).stdout == "1 made due, 0 still pending\n"
    record(app, "c", pending(NOW + 3600))
    service.default = (500, {}, b"")
    assert runner.invoke(args=["retry"]).stdout == (
        "1 made due, 1 still pending\nupdate_crm: 1 pending, 0 failed (answered 500)\n"
    )
    assert [body["call_id"] for body in service.bodies] == ["a", "b", "c"]


def test_retry_leaves_what_handlers_that_are_off_have_pending_and_says_so(app, runner, service):
    for number in range(5):
        record(app, f"call-{number}", pending())
    result = runner.invoke(args=["retry"])
    assert result.stdout == "0 made due, 5 still pending\nupdate_crm: 5 pending, 0 failed (off here)\n"
    app.config["CRM_WEBHOOK_URL"] = service.url
    lanes.init_app(app)
    assert runner.invoke(args=["retry"]).stdout == "5 made due, 0 still pending\n"
    assert len(service.bodies) == 5


def test_retry_stops_where_the_service_stays_away_and_says_how_much_it_left(app, runner, service):
    app.config["CRM_WEBHOOK_URL"] = service.url
    lanes.init_app(app)
    for number in range(9):
        record(app, f"call-{number}", pending())
    service.default = (503, {}, b"maintenance")
    assert runner.invoke(args=["retry"]).stdout.splitlines() == [
        "9 made due, 9 still pending",
        "update_crm: 9 pending, 0 failed (answered 503: maintenance)",
    ]
    assert len(service.bodies) == 3


def test_retry_tries_each_job_once_though_the_first_are_due_again_before_the_last(app, runner, clock, monkeypatch):
    def update_crm(update):
        calls.append(update.call.id)
        clock.now += 60
        raise Retry("answered 401")

    calls = []
    monkeypatch.setattr(handlers, "HANDLERS", (update_crm,))
    lanes.init_app(app)
    for call_id in "abc":
        record(app, call_id, pending())
    assert runner.invoke(args=["retry"]).stdout.startswith("3 made due, 3 still pending\n")
    assert calls == ["a", "b", "c"]


def test_retry_gets_to_the_other_handlers_where_one_hangs(app, runner, service, monkeypatch):
    def hangs(update):
        ends.append(ended.wait(30))

    ended, ends = threading.Event(), []
    monkeypatch.setattr(handlers, "HANDLERS", (hangs, handlers.update_crm))
    app.config |= {"CRM_WEBHOOK_URL": service.url, "WORKER_PATIENCE": (0.05, 0.2)}
    lanes.init_app(app)
    record(app, "a", pending())
    with app.app_context():
        keep_update(get_store(), update(call_id="b"), ["hangs"], NOW)
    result = runner.invoke(args=["retry"])
    assert ([body["call_id"] for body in service.bodies], ends) == (["a"], [])
    ended.set()
    assert "hangs: 1 pending, 0 failed" in result.stdout


class TestImport:
    def line(self, **fields):
        document = message(call_id="a", timestamp="2027-01-15T08:00:00Z")["message"]
        return json.dumps({"received_at": "2027-01-15T08:00:00Z", "message": document} | fields)

    def kept(self, app):
        with app.app_context():
            [stored] = updates.since(get_store())
            return stored

    def test_an_export_brings_back_all_that_it_says(self, app, runner):
        jobs = [
            {"handler": "update_crm", "state": "done", "attempts": 3, "error": "x", "done_at": "2027-01-15T08:01:00Z"},
            {"handler": "alert_on_error", "state": "pending", "attempts": 2, "due_at": "2027-01-15T09:00:00Z"},
            {"handler": "track_call", "state": "failed", "attempts": 9, "first_tried_at": "2027-01-14T08:00:00Z"},
        ]
        names, last = ["log_event", "update_crm"], "2027-01-15T08:09:00Z"
        line = self.line(jobs=jobs, handlers=names, times=4, last_received_at=last)
        assert runner.invoke(args=["import"], input=line).stdout == "1 kept\n"
        stored = self.kept(app)
        assert (stored.handlers, stored.times, stored.last_received_at) == (tuple(names), 4, NOW - 21 * 60)
        alert, track, crm = stored.jobs
        assert (crm.state, crm.attempts, crm.error, crm.done_at) == ("done", 3, "x", NOW - 29 * 60)
        assert (alert.state, alert.attempts, alert.due_at) == ("pending", 2, NOW + 30 * 60)
        assert (track.state, track.attempts, track.first_tried_at) == ("failed", 9, NOW - 86400 - 30 * 60)

    def test_a_line_that_names_no_handlers_is_work_for_those_that_are_on_and_the_rest_has_to_be_confirmed(
        self, app, runner
    ):
        result = runner.invoke(args=["import"], input=self.line())
        assert result.exit_code == 1
        assert "off here, and so they get no work" in result.stderr
        assert "track_call, alert_on_error, update_crm. Go on with --yes" in result.stderr
        assert runner.invoke(args=["import", "--yes"], input=self.line()).stdout == "1 kept\n"
        assert [(job.handler, job.state) for job in self.kept(app).jobs] == [("log_event", "pending")]

    @pytest.mark.parametrize(
        "fields",
        [
            {"jobs": [5]},
            {"jobs": [{"handler": "x", "state": "done"}] * 2},
            {"jobs": [{"handler": "x", "state": "lost"}]},
            {"jobs": {}},
            {"times": "often"},
            {"received_at": "soon"},
            {"last_received_at": "9999-12-31T23:59:59-14:00"},
            {"handlers": "log_event"},
        ],
    )
    def test_a_line_that_makes_no_sense_is_told_by_its_number_and_the_others_are_kept(self, app, runner, fields):
        lines = self.line(**fields) + "\n" + self.line(jobs=[])
        result = runner.invoke(args=["import"], input=lines)
        assert (result.exit_code, result.stdout) == (1, "1 wrong\n1 kept\n")
        assert "line 1: " in result.stderr
        assert self.kept(app).jobs == ()

    def test_a_line_that_was_cut_is_told_by_its_number(self, app, runner):
        result = runner.invoke(args=["import"], input=f"a title\n{self.line(jobs=[])[:-9]}\n{self.line(jobs=[])}")
        assert (result.exit_code, result.stdout) == (1, "1 passed over\n1 wrong\n1 kept\n")
        assert "line 2: " in result.stderr

    @pytest.mark.parametrize(
        "line", ["[]", "5", "null", '{"pending": null}', '{"message": null}', '{"message": []}', "\xff", "{"]
    )
    def test_no_line_ends_in_a_traceback(self, runner, line):
        result = runner.invoke(args=["import", "--yes"], input=line.encode("latin-1"))
        assert result.exit_code in (0, 1)
        assert "1 passed over" in result.stdout or "1 wrong" in result.stdout
        result = runner.invoke(
            args=["import", "--url", f"http://127.0.0.1:{free_port()}"], input=line.encode("latin-1")
        )
        assert any(text in result.stdout for text in ("1 passed over", "1 wrong", "1 without an answer"))


@pytest.mark.parametrize("command", ["check", "export"])
def test_a_store_that_fails_is_told_in_one_line(runner, tmp_path, command):
    (tmp_path / "calls.db").mkdir()
    result = runner.invoke(args=[command])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("Error: ") and "calls.db" in result.stderr


@pytest.mark.parametrize(
    ("url", "added"),
    [
        ("http://127.0.0.1:8000", URL),
        ("https://x.example.com/", URL[1:]),
        ("https://x.example.com/behind/a/proxy", ""),
    ],
)
def test_a_url_without_a_path_means_its_webhook(url, added):
    assert webhook_url(url) == url + added


def test_made_up_calls_are_such_as_the_provider_sends():
    messages = [json.loads(body)["message"] for _, body in made_up_calls(300, 10, 0.5)]
    assert len({message["call"]["id"] for message in messages}) == 300
    assert len(messages) == 600
    assert {message["call"]["status"] for message in messages} == {"in-progress", "ended", "ended-with-error"}
    for one in messages:
        assert ("error" in one) == (one["call"]["status"] == "ended-with-error")


def test_simulate_posts_signed_calls_and_counts_the_answers(receiver):
    server = receiver(WEBHOOK_SECRET=SECRET)
    done = server.flask("simulate", "--url", server.url, "--calls", "3", "--rate", "1000", "--errors", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 answered 200\n"
    assert {line["status"] for line in server.exported()} == {"in-progress", "ended-with-error"}
    assert requests.get(f"{server.url}/calls.json", auth=("", PASSWORD), timeout=5).json()["active"] == []
    server.environment["WEBHOOK_SECRET"] = "a wrong one"
    done = server.flask("simulate", "--url", server.url, "--calls", "1", "--rate", "1000")
    assert done.returncode == 1
    assert "answered 401" in done.stdout


def test_simulate_asks_before_it_posts_elsewhere(runner):
    result = runner.invoke(args=["simulate", "--url", "https://calls.invalid"], input="n\n")
    assert result.exit_code == 1
    assert "https://calls.invalid/webhooks/status-update?" in result.output
