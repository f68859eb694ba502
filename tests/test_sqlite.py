import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from stores import StoreError, sqlite_log, updates
from stores.sqlite import SQLite
from tests.conftest import recent, update, wait_until


@pytest.fixture
def store(tmp_path):
    store = SQLite(str(tmp_path / "calls.db"))
    yield store
    store.close()


def keep(store, call_id="call-1"):
    return updates.record(store, update(call_id=call_id), ["handler"])


def test_what_is_recorded_was_brought_to_the_disk_a_repeat_too(store, monkeypatch):
    synced = []
    monkeypatch.setattr(sqlite_log, "_sync_data", synced.append)
    assert keep(store)
    assert len(synced) == 1
    assert keep(store) is None  # the first may not be on the disk yet
    assert len(synced) == 2


def test_what_cannot_be_brought_to_the_disk_is_not_acknowledged(store, monkeypatch):
    def fail(_):
        raise OSError("no such disk")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_log, "_sync_data", fail)
        with pytest.raises(StoreError, match="calls.db: no such disk"):
            keep(store)
    assert keep(store, "call-2")


def test_one_sync_serves_all_who_wait_for_it(store, monkeypatch):
    synced, goes_on = [], threading.Event()

    def sync(file):
        synced.append(file)
        goes_on.wait(20)

    keep(store, "first")
    monkeypatch.setattr(sqlite_log, "_sync_data", sync)
    threads = [threading.Thread(target=keep, args=(store, f"call-{number}")) for number in range(9)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len([*updates.since(store)]) == 10)  # nobody waits for the disk to write
    goes_on.set()
    for thread in threads:
        thread.join()
    assert len(synced) in (1, 2)


def test_a_file_that_is_locked_when_it_is_first_used_is_waited_for(store):
    other = sqlite3.connect(store.path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE made_before (of INTEGER)")
    other.execute("BEGIN")
    other.execute("SELECT * FROM made_before").fetchone()  # which hinders the switch to the log
    end = threading.Timer(0.3, other.rollback)
    end.start()
    assert keep(store)
    end.join()
    other.close()


def test_who_waits_for_a_sync_that_fails_is_not_acknowledged_either(store, monkeypatch):
    syncs = []

    def sync(_):
        syncs.append(1)
        wait_until(lambda: len([*updates.since(store)]) == 2)
        if len(syncs) == 1:
            raise OSError("told once")

    def fails(call_id):
        with pytest.raises(StoreError):
            keep(store, call_id)
        return True

    monkeypatch.setattr(sqlite_log, "_sync_data", sync)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(fails, ("call-1", "call-2")))


def test_a_log_that_is_deleted_by_itself_is_noticed_and_loses_nothing(store):
    keep(store, "before")
    Path(f"{store.path}-wal").unlink()
    with pytest.raises(StoreError, match="replaced while in use"):
        keep(store, "meanwhile")
    assert keep(store, "after")
    assert [kept.call_id for kept in updates.since(store)] == ["before", "meanwhile", "after"]


def test_a_folder_that_cannot_be_looked_into_is_an_error_of_the_store(tmp_path):
    with closing(SQLite(str(tmp_path / ("x" * 300) / "calls.db"))) as store:
        with pytest.raises(StoreError, match="too long"):
            recent(store, 1)


def test_a_log_whose_index_is_deleted_by_itself_is_noticed_and_loses_nothing(store):
    keep(store, "before")
    Path(f"{store.path}-shm").unlink()
    with pytest.raises(StoreError, match="replaced while in use"):
        keep(store, "meanwhile")
    assert keep(store, "after")
    assert [stored.call_id for stored in updates.since(store)] == ["before", "meanwhile", "after"]
