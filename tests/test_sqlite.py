import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from stores import StoreError, updates
from stores.sqlite import SQLite
from tests.conftest import keep_update, recent, update, wait_until


@pytest.fixture
def store(tmp_path):
    store = SQLite(str(tmp_path / "calls.db"))
    yield store
    store.close()


def keep(store, call_id="call-1"):
    return keep_update(store, update(call_id=call_id, error="x" * 5000), ["handler"])


def test_a_commit_reaches_the_disk_before_it_returns(store):
    keep(store)
    pragmas = [store._writer.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert pragmas == ["wal", 2]  # FULL


def keep_all_at_once(store, first=lambda db: None):
    """Write `first` and, while that goes on, nine updates. Returns what each of the nine got, an id or an error, and
    how many transactions there were."""
    begun, goes_on, statements = threading.Event(), threading.Event(), []

    def hold(db):
        db.set_trace_callback(statements.append)
        begun.set()
        goes_on.wait(20)
        first(db)

    with ThreadPoolExecutor(10) as pool:
        held = pool.submit(store._write, hold)
        assert begun.wait(20)
        others = [pool.submit(keep, store, f"call-{number}") for number in range(9)]
        wait_until(lambda: len(store._queue) == 9)
        goes_on.set()
        held.result()
        return [each.exception() or each.result() for each in others], statements.count("COMMIT")


def test_one_commit_serves_all_who_came_during_the_last(store):
    ids, commits = keep_all_at_once(store)
    assert sorted(ids) == [*range(1, 10)]
    assert commits == 2


def fill_disk(db):
    db.execute("PRAGMA max_page_count = 1")  # SQLite takes the size that it has


def test_who_shares_a_commit_that_fails_is_not_acknowledged_and_nothing_of_it_is_kept(store):
    keep(store, "first")
    errors, _ = keep_all_at_once(store, fill_disk)
    assert {str(error) for error in errors} == {f"{store.path}: database or disk is full"}
    assert [kept.call_id for kept in updates.since(store)] == ["first"]
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
def test_a_log_or_its_index_that_is_deleted_loses_nothing_and_what_goes_into_it_is_not_acknowledged(store, suffix):
    keep(store, "before")
    Path(f"{store.path}{suffix}").unlink()
    assert keep(store, "meanwhile")
    with pytest.raises(StoreError, match="replaced while in use"), store.transaction() as execute:
        execute("UPDATE calls SET type = 'late'")
        Path(f"{store.path}{suffix}").unlink()
    assert keep(store, "after")
    assert [kept.call_id for kept in updates.since(store)] == ["before", "meanwhile", "after"]


def test_a_folder_that_cannot_be_looked_into_is_an_error_of_the_store(tmp_path):
    with closing(SQLite(str(tmp_path / ("x" * 300) / "calls.db"))) as store:
        with pytest.raises(StoreError, match="too long"):
            recent(store, 1)
