import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from unittest.mock import Mock

import pytest

from stores import StoreError, retention, sqlite, updates
from stores.sqlite import SQLite
from tests.conftest import ROOT, keep_update, query, recent, update, wait_until


@pytest.fixture
def store(tmp_path):
    store = SQLite(str(tmp_path / "calls.db"))
    yield store
    store.close()


def keep(store, call_id="call-1"):
    return keep_update(store, update(call_id=call_id, error="x" * 5000), ["handler"])


def test_a_commit_reaches_the_disk_before_it_returns(store):
    keep(store)
    pragmas = [store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]  # FULL


def keep_all_at_once(store, first=lambda db: None):
    """Write `first` and, while that goes on, nine updates. Returns what each of the nine got, an id or an error, and
    how many transactions there were."""
    begun, goes_on, statements = threading.Event(), threading.Event(), []

    def hold(db):
        db.set_trace_callback(statements.append)
        begun.set()
        goes_on.wait(20)

    with ThreadPoolExecutor(11) as pool:
        held = pool.submit(store._write, hold)
        assert begun.wait(20)
        pool.submit(store._write, first)
        wait_until(lambda: len(store._queue) == 1)
        others = [pool.submit(keep, store, f"call-{number}") for number in range(9)]
        wait_until(lambda: len(store._queue) == 10)
        goes_on.set()
        held.result()
        return [other.exception() or other.result() for other in others], statements.count("COMMIT")


def test_one_commit_serves_all_who_came_during_the_last(store):
    ids, commits = keep_all_at_once(store)
    assert sorted(ids) == [*range(1, 10)]
    assert commits == 2


def test_a_write_that_fails_fails_no_other_of_its_commit(store):
    ids, _ = keep_all_at_once(store, lambda db: db.execute("INSERT INTO locks VALUES ('bad', NULL)"))
    assert sorted(ids) == [*range(1, 10)]
    assert updates.count(store) == 9


def fill_disk(db):
    db.execute("PRAGMA max_page_count = 1")  # SQLite takes the size that it has


def test_what_fails_alone_too_is_not_acknowledged_nothing_of_it_is_kept_and_the_file_is_opened_afresh(store):
    keep(store, "first")
    results, _ = keep_all_at_once(store, fill_disk)
    [error] = [result for result in results if not isinstance(result, int)]
    assert str(error) == f"{store.path}: database or disk is full"
    assert {stored.id for stored in updates.since(store)} == {1, *results} - {error}


def test_a_locked_file_is_waited_for_once_by_all_in_line(store, monkeypatch):
    monkeypatch.setattr(sqlite, "PATIENCE", 0.1)
    keep(store, "before")
    begin = Mock(side_effect=store._begun)
    monkeypatch.setattr(store, "_begun", begin)
    with closing(sqlite3.connect(store.path, isolation_level=None)) as program, ThreadPoolExecutor(9) as pool:
        program.execute("BEGIN IMMEDIATE")
        with store._lock:
            writes = [pool.submit(keep, store, f"call-{number}") for number in range(9)]
            wait_until(lambda: len(store._queue) == 9)
        assert {str(write.exception()) for write in writes} == {f"{store.path}: database is locked"}
    begin.assert_called_once()
    assert keep(store, "after")


def test_a_file_that_is_locked_when_it_is_first_used_is_waited_for(store):
    with closing(sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE made_before (of INTEGER)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM made_before").fetchone()  # which hinders the switch to the log
        end = threading.Timer(0.1, other.rollback)
        end.start()
        assert keep(store)
        end.join()


@pytest.mark.parametrize("put", [lambda path: None, lambda path: path.write_bytes(b"")])
def test_a_file_that_is_deleted_or_replaced_is_told_once_and_opened_afresh(store, put):
    keep(store, "before")
    store.path.unlink()
    put(store.path)
    with pytest.raises(StoreError, match="calls.db: replaced while in use"):
        updates.count(store)
    assert keep(store, "after")
    with pytest.raises(StoreError, match="calls.db: replaced while in use"), store.transaction() as execute:
        execute("UPDATE calls SET type = 'late'")
        store.path.unlink()
        put(store.path)
    assert keep(store, "last")
    assert [stored.call_id for stored in updates.since(store)] == ["last"]


def test_a_file_that_is_closed_has_everything_and_is_alone(store, tmp_path):
    keep(store)
    store.close()
    assert os.listdir(tmp_path) == ["calls.db"]
    assert query(store.path, "SELECT call_id FROM updates") == [("call-1",)]


def test_a_process_that_ends_closes_its_file(tmp_path):
    program = """
import threading, app
store = app.app.extensions["store"]
threading.Thread(target=lambda: (store.check(), threading.Event().wait()), daemon=True).start()
store.check()
"""
    environment = os.environ | {"SQLITE_PATH": str(tmp_path / "calls.db")}
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, check=True)
    assert os.listdir(tmp_path) == ["calls.db"]


def test_new_files_are_their_owner_s_only(store, tmp_path):
    before = os.umask(0)
    try:
        keep(store)
    finally:
        os.umask(before)
    assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
        "calls.db": 0o600,
        "calls.db-wal": 0o600,
        "calls.db-shm": 0o600,
    }


@pytest.mark.parametrize("in_use", [True, False])
def test_who_is_forgotten_is_in_no_file_afterwards_even_where_another_has_it_open(store, tmp_path, in_use):
    for number in range(300):
        caller = {"number": f"+3161234{number % 3:04}"}
        keep_update(store, update(call_id=f"call-{number}-{caller['number']}", customer=caller), ["log_event"])
    with closing(sqlite3.connect(store.path)) as other:
        other.execute("SELECT * FROM calls").fetchone()
        if not in_use:
            other.close()
        assert retention.remove(store, retention.calls_of(store, "+31612340001")) == 100
        store.close()
        content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        assert (b"+31612340000" in content, b"+31612340001" in content) == (True, False)


def test_a_folder_that_cannot_be_looked_into_is_an_error_of_the_store(tmp_path):
    with closing(SQLite(str(tmp_path / ("x" * 300) / "calls.db"))) as store:
        with pytest.raises(StoreError, match="too long"):
            recent(store, 1)
