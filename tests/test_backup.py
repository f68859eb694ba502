"""What docs/operations.md says of backups, done as it stands there."""

import os
import shutil
import subprocess
from contextlib import closing

import pytest

from stores import jobs, updates
from stores.postgres import Postgres
from stores.records import Change, Job
from stores.sqlite import SQLite
from tests.conftest import NOW, keep_update, message, update
from tests.postgres import LATEST, program
from tests.test_readme import OPERATIONS, blocks

BACK_UP_FILE, RESTORE_FILE, BACK_UP_SERVER, RESTORE_SERVER = blocks("Back up and restore", text=OPERATIONS)
TABLES = ("updates", "jobs", "attempts", "calls")


def run(lines, path, **environment):
    environment.setdefault("PATH", os.environ["PATH"])
    done = subprocess.run(["bash", "-euc", lines], cwd=path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def contents(db):
    return {table: sorted(db.query(f"SELECT * FROM {table}"), key=repr) for table in TABLES}


def fill(db):
    """Keep two updates: one with nothing to do any more, and one whose first attempt failed."""
    keep_update(db, update())
    update_id = keep_update(db, update("ended"), ["update_crm"], lease=NOW + 30)
    job = Job("update_crm", "pending", NOW + 60, 1, NOW, "answered 503")
    jobs.settle(db, [Change(update_id, NOW + 30, job, failed_at=NOW)])


def test_an_sqlite_file_is_backed_up_while_it_is_used_and_restored(receiver, tmp_path):
    if not shutil.which("sqlite3"):
        pytest.skip("sqlite3 is not installed")
    server = receiver(SQLITE_PATH=str(tmp_path / "instance/calls.db"))
    server.post(message())
    run(BACK_UP_FILE, tmp_path)
    assert (tmp_path / "calls-backup.db").stat().st_mode & 0o777 == 0o600
    server.post(message("ended"))
    server.stop()
    run(RESTORE_FILE, tmp_path)
    server.start()
    server.ready()
    assert [line["status"] for line in server.exported()] == ["in-progress"]
    assert server.post(message("ended")).ok
    assert (tmp_path / "instance/calls.db").stat().st_mode & 0o777 == 0o600


def test_a_copy_of_the_file_alone_has_everything_once_the_receiver_has_ended_by_itself(receiver, tmp_path):
    server = receiver(SQLITE_PATH=str(tmp_path / "instance/calls.db"), WEB_CONCURRENCY="2")
    for number in range(20):
        server.post(message(call_id=f"call-{number}"))
    assert server.stop() == 0
    assert os.listdir(tmp_path / "instance") == ["calls.db"]
    copy = shutil.copy(tmp_path / "instance/calls.db", tmp_path / "copy.db")
    with closing(SQLite(copy)) as db:
        assert updates.count(db) == 20


def test_a_command_leaves_nothing_beside_the_file(receiver, tmp_path):
    server = receiver(SQLITE_PATH=str(tmp_path / "instance/calls.db"))
    server.post(message())
    server.stop()
    assert len(server.exported()) == 1
    assert os.listdir(tmp_path / "instance") == ["calls.db"]


def test_a_dump_of_postgresql_restored_into_an_empty_database_has_everything(new_postgres, tmp_path):
    server, programs = new_postgres(), program("psql", LATEST).parent
    server.execute("CREATE DATABASE restored")
    restored_url = server.url.removesuffix("postgres") + "restored"
    with closing(Postgres(server.url, clock=lambda: NOW)) as db:
        fill(db)
        expected = contents(db)
    urls = {"DATABASE_URL": server.url, "NEW_DATABASE_URL": restored_url}
    run(BACK_UP_SERVER + RESTORE_SERVER, tmp_path, PATH=f"{programs}:{os.environ['PATH']}", **urls)
    with closing(Postgres(restored_url, clock=lambda: NOW + 61)) as db:
        assert contents(db) == expected and all(expected.values())
        assert keep_update(db, update()) is None and keep_update(db, update(call_id="call-2"))
        assert len(jobs.lease_due(db, "update_crm", NOW + 61, NOW + 90, 9)) == 1
