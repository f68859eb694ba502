"""What an older release kept is kept by this one, and what a newer release made is left alone."""

import json
import sqlite3
from contextlib import closing
from datetime import datetime

import pytest

import stores
from schemas.status_update import dump
from stores import StoreError, calls, jobs, refusals, retention, updates
from stores.postgres import Postgres
from stores.records import Backlog, Job, RefusalCount
from stores.schema import VERSION
from stores.sqlite import SQLite
from tests.conftest import NOW, ROOT, jobs_of, keep_update, lease_next, query, recent, settle_jobs, update
from tests.race import racing

START, END = "2025-12-13T12:00:00Z", "2025-12-13T12:05:00Z"
LIFE = [
    update("in-progress", "ended", NOW - 9000, timestamp=START, customer={"number": "+31600000001"}),
    update("ended", "ended", NOW - 8000, timestamp=END, end_reason="user_hangup", customer={"number": "+31600000001"}),
    update("ringing", "active", NOW - 20),
    update("in-progress", "active", NOW - 10, timestamp=START),
    update("in-progress", "failed", NOW - 9, timestamp=START),
    update("ended-with-error", "failed", NOW - 5, timestamp=END, error="SIP 486"),
]
ROWS = [  # due, leased, attempts, first tried, error
    ("failed", "ended-with-error", "update_crm", None, 0, 9, NOW - 90_000, "answered 404"),
    ("failed", "ended-with-error", "alert_on_error", NOW + 60, 1, 1, NOW - 5, "answered 500"),
    ("failed", "ended-with-error", "log_event", NOW + 60, 1, 0, None, None),
    ("active", "in-progress", "update_crm", NOW + 30, 0, 2, NOW - 10, "answered 503"),
]
JOBS = {
    "update_crm": Job("update_crm", "failed", None, 9, NOW - 90_000, "answered 404"),
    "alert_on_error": Job("alert_on_error", "leased", NOW + 60, 1, NOW - 5, "answered 500"),
    "log_event": Job("log_event", "leased", NOW + 60),
}


@pytest.fixture
def path(tmp_path):
    """A file as version 1 left it."""
    path = tmp_path / "calls.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript((ROOT / "tests/schema_1.sql").read_text())
        for each in LIFE:
            values = (each.call.id, each.call.status, each.received_at.timestamp(), NOW, json.dumps(dump(each)))
            columns = "call_id, status, received_at, kept_at, message, alike"
            insert(db, f"updates ({columns})", *values, each.error_group)
        for row in ROWS:
            insert(db, "rows", *row, NOW - 5)
        for call in old_calls():
            insert(db, f"calls ({', '.join(call)})", *call.values())
        insert(db, "refusals", NOW - 1800, "stale", 3, NOW)
        insert(db, "claims", "prune", NOW)
        insert(db, "reports", "SIP #", 6, NOW, NOW)
        db.commit()
    return path


def insert(db, table, *values):
    db.execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(values))})", values)


def old_calls():
    """What the updates tell of their calls, as version 1 had it."""
    start, end = (datetime.fromisoformat(each).timestamp() for each in (START, END))
    started = {"status": "in-progress", "type": "inbound_phone_call", "line": "+31850835037", "started_at": start}
    times = {"received_at": NOW - 20, "start_received_at": NOW - 10, "asked_at": NOW}
    yield started | times | {"id": "active", "unknown": 1}
    for id, status, first, last, error in (
        ("ended", "ended", NOW - 9000, NOW - 8000, None),
        ("failed", "ended-with-error", NOW - 9, NOW - 5, "SIP 486"),
    ):
        times = {"received_at": first, "start_received_at": first, "ended_at": end, "end_received_at": last}
        yield started | times | {"id": id, "status": status, "error": error, "customer": "+31600000001"}


@pytest.fixture
def upgraded(path, clock):
    with closing(SQLite(path, clock)) as store:
        yield store


def test_nothing_is_lost(upgraded, path):
    error = "CASE WHEN status = 'ended-with-error' THEN error END"
    figures = query(path, f"SELECT hour, {error}, calls, timed, seconds FROM figures WHERE calls > 0")
    stored = [*updates.since(upgraded)]
    assert [each.load() for each in stored] == LIFE
    assert [(each.id, each.kept_at) for each in stored] == [(number, NOW) for number in range(1, 7)]
    assert jobs_of(upgraded, "failed") == JOBS
    assert jobs_of(upgraded, "active") == {
        "update_crm": Job("update_crm", "pending", NOW + 30, 2, NOW - 10, "answered 503")
    }
    assert jobs_of(upgraded, "ended") == {}
    assert refusals.since(upgraded, NOW) == [RefusalCount("stale", 3, NOW)]
    counts = [
        (hour, error, tally.calls, tally.timed, tally.seconds)
        for hour in {hour for hour, *_ in figures}
        for _, error, tally in calls.tallies(upgraded, hour, hour + 3600)
    ]
    assert (len(counts), sorted(counts, key=repr)) == (3, sorted(figures, key=repr))


def test_calls_are_what_their_updates_tell_of_them_again(upgraded):
    [active] = calls.active(upgraded)
    assert (active.id, active.status, active.received_at) == ("active", "in-progress", NOW - 20)
    assert (active.checked_at, active.unknown, active.seconds) == (NOW, True, None)
    ended, failed = (calls.get(upgraded, id) for id in ("ended", "failed"))
    assert (ended.status, ended.seconds, ended.checked_at, ended.unknown) == ("ended", 300, None, False)
    assert (failed.status, failed.error, failed.end_received_at) == ("ended-with-error", "SIP 486", NOW - 5)
    assert sorted(tally.latest for _, _, tally in calls.tallies(upgraded, 0)) == [NOW - 9000, NOW - 20, NOW - 9]
    assert [call.id for call in recent(upgraded, 9, "+31600000001")] == ["failed", "ended"]


def test_work_goes_on_where_it_was(upgraded):
    assert jobs.backlog(upgraded) == [
        Backlog("alert_on_error", 1, 0, NOW - 5, "answered 500", None, NOW + 60),
        Backlog("log_event", 1, 0, NOW - 5, None, None, NOW + 60),
        Backlog("update_crm", 1, 1, NOW - 10, "answered 404", None, NOW + 30),
    ]
    assert keep_update(upgraded, LIFE[0], ["log_event"]) is None
    assert keep_update(upgraded, update("ended", "active", NOW), ["log_event"]) > len(LIFE)
    assert calls.active(upgraded) == []
    stored, job = lease_next(upgraded, "update_crm", NOW + 30, NOW + 90)
    assert (stored.load(), job.attempts) == (LIFE[3], 2)
    settle_jobs(upgraded, (stored.id, NOW + 90, [Job("update_crm", "done", None, 3, NOW - 10, "answered 503", NOW)]))
    assert jobs.count_done(upgraded, "update_crm", NOW) == 1
    assert jobs.retry_now(upgraded, failed=True, handler="update_crm") == 1
    assert jobs.with_same_error(upgraded, "alert_on_error", update("ended-with-error", "x", error="SIP 1")) == [6]
    assert retention.forget(upgraded, "+31600000001") == {"calls": 2, "updates": 4, "jobs": 3}


def test_of_many_processes_that_start_at_once_one_brings_it_up_to_date(upgraded, path):
    with racing({"SQLITE_PATH": str(path), "DATABASE_URL": None}) as race:
        assert race("record") == 1
    assert [each.load() for each in updates.since(upgraded)][: len(LIFE)] == LIFE
    assert updates.count(upgraded) == len(LIFE) + 1
    assert jobs_of(upgraded, "failed") == JOBS


def test_an_upgrade_that_is_cut_short_changed_nothing(upgraded, path):
    before = tables(path)
    query(path, "CREATE TABLE troubles (what TEXT)")  # as the upgrade's last step makes one
    with pytest.raises(StoreError, match="table troubles already exists"):
        upgraded.check()
    assert query(path, "PRAGMA user_version") == [(1,)]
    query(path, "DROP TABLE troubles")
    assert tables(path) == before
    upgraded.check()
    assert jobs_of(upgraded, "failed") == JOBS


def test_an_upgraded_database_has_the_version_and_the_tables_of_a_new_one(upgraded, path, tmp_path):
    upgraded.check()
    assert query(path, "PRAGMA user_version") == [(VERSION,)]
    assert tables(path) == tables(new_sqlite(tmp_path))


def new_sqlite(tmp_path):
    """The path of a file that was made by this release."""
    with closing(SQLite(tmp_path / "new.db")) as new:
        new.check()
        return new.path


def tables(path):
    """By name, the columns of every table, and what its indexes index."""
    found, made_by = {}, dict(query(path, "SELECT name, sql FROM sqlite_master"))
    for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"):
        indexes = set()
        for _, index, unique, *_ in query(path, f"PRAGMA index_list('{name}')"):
            columns = tuple(column for _, _, column in query(path, f"PRAGMA index_info('{index}')"))
            indexes.add((columns, unique, (made_by.get(index) or "").partition("WHERE")[2]))
        found[name] = {row[1] for row in query(path, f"PRAGMA table_xinfo('{name}')")}, indexes
    return found


def test_both_databases_have_the_same_tables(tmp_path, postgres):
    with closing(Postgres(postgres.url)) as new:
        new.check()
    theirs = dict(
        postgres.execute(
            "SELECT table_name, array_agg(column_name::text) FROM information_schema.columns"
            " WHERE table_schema = 'public' GROUP BY table_name"
        )
    )
    assert theirs.pop("receiver") == ["version"]
    ours = tables(new_sqlite(tmp_path))
    assert {name: {*columns} for name, columns in theirs.items()} == {name: ours[name][0] for name in ours}


@pytest.mark.parametrize("reads", [False, True])
def test_a_database_of_a_newer_release_is_left_alone_and_refused_in_one_line(store, store_settings, reads):
    store.check()
    store.close()
    if store.name == "sqlite":
        query(store.path, f"PRAGMA user_version = {VERSION + 1}")
    else:
        store.execute(f"UPDATE receiver SET version = {VERSION + 1}")
        store.close()
    says = (
        rf"(calls\.db|127\.0\.0\.1:\d+): made by a newer release \(version {VERSION + 1}, this one has {VERSION}\).*\Z"
    )
    with closing(stores.create(store_settings)) as refused:
        for _ in range(2):
            with pytest.raises(StoreError, match=says):
                updates.latest(refused) if reads else refused.check()
