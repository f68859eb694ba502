"""Each bench's own code, with this receiver alone and a few updates. How much it costs is for `make bench`."""

import socket
import time
from contextlib import closing
from dataclasses import replace

import pytest

from bench import cost, failure, fill, growth, load
from bench import running as who
from bench.failure import Scenario
from tests.conftest import ROOT

DAY = 24 * 3600
ONE_PROCESS = failure.ALONE[0]


def test_make_bench_measures_an_update_until_the_crm_has_it_and_prints_each_target():
    columns = cost.measure(ONE_PROCESS, updates=8, steady=2)
    assert columns["processes"] == 2
    assert columns["MB, all"] > columns["MB, one process"] > 10
    assert all(columns[name] > 0 for name in ("updates/s", "p50 ms", "start s"))
    report = cost.report(dict.fromkeys(cost.ALL, [columns | {cost.CPU: 250.0}]))
    assert all(f"| {text} " in report for text, *_ in cost.TARGETS)
    assert report.count(" 1.00 |") == 2 * len(cost.TARGETS)  # each is compared with itself


def test_make_bench_growth_measures_a_full_store_beside_an_empty_one(monkeypatch):
    monkeypatch.setattr(growth, "LOOKS", 1)
    monkeypatch.setattr(cost, "SETTLING", 0)
    cells = growth.measure(replace(who.SQLITE, processes=1), kept=40, base=20, rounds=1, updates=100)
    assert set(cells) > {*growth.PAGES, *growth.LOADS}


def test_a_store_is_filled_with_a_tenth_of_the_calls_in_the_last_day(store_settings):
    names = ("SQLITE_PATH", "DATABASE_URL")
    environment = {name: store_settings[name] for name in names if store_settings[name]}
    fill.fill(environment, updates=8, copies=20)
    with closing(fill.connect(environment)) as db:
        ids = db.execute("SELECT call_id, message FROM updates").fetchall()
        received = [moment for (moment,) in db.execute("SELECT received_at FROM calls").fetchall()]
    assert len(ids) == 160 and all(f'"{id}"' in message for id, message in ids)
    assert len(received) == 80
    assert sum(moment > time.time() - DAY for moment in received) == 8
    assert 25 * DAY < time.time() - min(received) < 30 * DAY


def test_make_bench_failure_tells_what_a_crash_loses_and_what_is_posted_again():
    scenario = Scenario("is well", 6, during=0, killed=True, patience=2)
    row = dict(zip(failure.HEAD.split("|"), failure.measure(ONE_PROCESS, scenario), strict=True))
    assert (row["updates"], row["answered 200"]) == ("6", "100.0%")
    assert (row["again"], row["missing"]) == ("0", "0")


def test_a_crm_that_takes_its_time_or_is_away_has_nothing_posted_twice():
    scenario = Scenario("takes 20 ms", 4, rate=100, during=0.02, after=0.02)
    row = dict(zip(failure.HEAD.split("|"), failure.measure(ONE_PROCESS, scenario), strict=True))
    assert (row["answered 200"], row["again"], row["pending"], row["missing"]) == ("100.0%", "0", "0", "0")
    assert float(row["p50 ms"]) >= 20


@pytest.mark.parametrize("rate", [0, 100])
def test_a_load_tells_each_status_and_where_no_answer_came(service, rate):
    service.default = (503, {}, b"")
    service.answers += [(200, {}, b"OK")] * 2
    service.answers.append(lambda request: request.connection.shutdown(socket.SHUT_RDWR))
    answers = load.post(service.server.server_port, 5, rate)
    assert sorted(answer.status for answer in answers) == [0, 200, 200, 503, 503]


def test_one_call_in_so_many_fails(service):
    load.post(service.server.server_port, 2 * load.BLOCK, failing=5)
    statuses = [body["message"]["call"]["status"] for body in service.bodies]
    assert statuses.count("in-progress") == load.BLOCK
    assert statuses.count("ended-with-error") == load.BLOCK / 5


def test_each_contestant_says_which_promise_it_does_not_keep():
    folder = ROOT / "bench/contestants"
    for name in ("celery_receiver.py", "fastapi_receiver.py", "express/receiver.js"):
        assert "What it does not keep: " in (folder / name).read_text()[:500]
