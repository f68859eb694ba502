import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from stores import StoreError, sqlite_writer, updates
from stores.sqlite import SQLite
from tests.conftest import recent, update, wait_until


@pytest.fixture
def store(tmp_path):
    store = SQLite(str(tmp_path / "calls.db"))
    yield store
    store.close()


def keep(store, call_id="call-1"):
    return updates.record(store, update(call_id=call_id, error="x" * 5000), ["handler"])


def test_what_is_recorded_was_brought_to_the_disk_a_repeat_too(store, monkeypatch):
    synced = []
    monkeypatch.setattr(sqlite_writer, "_sync_data", synced.append)
    assert keep(store)
    assert len(synced) == 1
    assert keep(store) is None  # the first may not be on the disk yet
    assert len(synced) == 2


def keep_all_at_once(store, monkeypatch, sync):
    """Keep a first update and, while its sync goes on, nine others; `sync` is called for each sync. Returns what each
    thread got: an id or an error."""
    begun, goes_on = threading.Event(), threading.Event()

    def hold(file):
        begun.set()
        goes_on.wait(20)
        sync(file)

    recent(store, 1)  # opens it
    monkeypatch.setattr(sqlite_writer, "_sync_data", hold)
    with ThreadPoolExecutor(10) as pool:
        first = pool.submit(keep, store, "first")
        assert begun.wait(20)
        others = [pool.submit(keep, store, f"call-{number}") for number in range(9)]
        wait_until(lambda: len(store._queue) == 9)
        goes_on.set()
        return [each.exception() or each.result() for each in (first, *others)]


def test_one_commit_and_one_sync_serve_all_who_came_during_the_last(store, monkeypatch):
    synced = []
    ids = keep_all_at_once(store, monkeypatch, synced.append)
    assert sorted(ids) == [*range(1, 11)]
    assert len(synced) == 2


def test_who_shares_a_commit_that_fails_is_not_acknowledged_and_nothing_of_it_is_kept(store, monkeypatch):
    def fill_disk(file):
        store._writer.db.execute("PRAGMA max_page_count = 1")  # SQLite takes the size that it has

    errors = keep_all_at_once(store, monkeypatch, fill_disk)[1:]
    assert {str(error) for error in errors} == {f"{store.path}: database or disk is full"}
    assert [kept.call_id for kept in updates.since(store)] == ["first"]
    monkeypatch.undo()
    assert keep(store, "later")


def test_who_shares_a_sync_that_fails_is_not_acknowledged(store, monkeypatch):
    syncs = []

    def fail_second(file):
        syncs.append(file)
        if len(syncs) == 2:
            raise OSError("no such disk")

    first, *others = keep_all_at_once(store, monkeypatch, fail_second)
    assert first == 1
    assert {str(error) for error in others} == {f"{store.path}: no such disk"}
    monkeypatch.undo()
    assert keep(store, "later")


def test_a_file_that_is_locked_when_it_is_first_used_is_waited_for(store):
    with closing(sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("CREATE TABLE made_before (of INTEGER)")
        other.execute("BEGIN")
        other.execute("SELECT * FROM made_before").fetchone()  # which hinders the switch to the log
        end = threading.Timer(0.1, other.rollback)
        end.start()
        assert keep(store)
        end.join()


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_log_or_its_index_that_is_deleted_by_itself_is_noticed_and_loses_nothing(store, suffix):
    keep(store, "before")
    Path(f"{store.path}{suffix}").unlink()
    with pytest.raises(StoreError, match="replaced while in use"):
        keep(store, "meanwhile")
    assert keep(store, "after")
    assert [kept.call_id for kept in updates.since(store)] == ["before", "meanwhile", "after"]


def test_a_folder_that_cannot_be_looked_into_is_an_error_of_the_store(tmp_path):
    with closing(SQLite(str(tmp_path / ("x" * 300) / "calls.db"))) as store:
        with pytest.raises(StoreError, match="too long"):
            recent(store, 1)
