"""Both databases have the same tables, and those that another release made are left alone."""

from contextlib import closing

import pytest

import stores
from stores import StoreError, spool, updates
from stores.postgres import Postgres
from stores.schema import VERSION
from stores.sqlite import SQLite
from tests.conftest import keep_or_spool, keep_update, query, update


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


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
@pytest.mark.parametrize("reads", [False, True])
def test_a_database_of_another_release_is_left_alone_and_refused_in_one_line(store, store_settings, reads, version):
    store.check()
    store.close()
    if store.name == "sqlite":
        query(store.path, f"PRAGMA user_version = {version}")
    else:
        store.execute(f"UPDATE receiver SET version = {version}")
        store.close()
    says = (
        rf"(calls\.db|127\.0\.0\.1:\d+): made by another release \(its version is {version}, this release's is"
        rf" {VERSION}\): run `flask export` with that release, then `flask import` into a new database with this one\Z"
    )
    with closing(stores.create(store_settings)) as refused:
        for _ in range(2):
            with pytest.raises(StoreError, match=says):
                updates.latest(refused) if reads else refused.check()


@pytest.mark.parametrize("store_settings", ["postgresql"], indirect=True)
def test_so_is_a_spool_of_another_release(store):
    keep_update(store.spool, update(), [])
    store.spool.close()
    query(store.spool.path, f"PRAGMA user_version = {VERSION - 1}")
    assert spool.waiting(store) == 0
    assert "calls.db.spool: made by another release" in store.spool.failure
    assert keep_or_spool(store, update(call_id="other"), []).outcome == "new"
    assert query(store.spool.path, "SELECT call_id FROM updates") == [("call-1",)]
