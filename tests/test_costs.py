"""What is done for an update costs no more the more is kept: by the plans of its statements, on both databases."""

import re
from contextlib import contextmanager

import pytest

from stores import jobs, retention, updates
from stores.records import Change, Job
from tests.conftest import NOW, keep_update, update

HANDLERS = ("alert_on_error", "update_crm")
TABLES = "(updates|jobs|calls|attempts)"
WHOLE_TABLE = re.compile(rf"SCAN (?!.*USING (COVERING )?INDEX jobs_open){TABLES}|Seq Scan on {TABLES}")


@pytest.fixture
def plan(store):
    """plan(verb): how the database would run each statement of the verb, which is run, too."""
    statements = []

    def spy(name):
        verb = getattr(store, name)

        def spied(sql, values={}, *more):  # noqa: B006
            statements.append((sql, values))
            statements.extend((f"WITH kept AS (SELECT 1 AS id) {each}", values) for each in more)
            return verb(sql, values, *more)

        return spied

    keep_update(store, update("ended-with-error", error="x"), HANDLERS, NOW + 60)
    begin = store.transaction

    @contextmanager
    def transaction(**options):
        with begin(**options) as execute:
            yield lambda sql, values={}: (statements.append((sql, values)), execute(sql, values))[1]  # noqa: B006

    def plan(verb):
        for name in ("query", "execute", "chain"):
            setattr(store, name, spy(name))
        store.transaction = transaction
        verb(store)
        for name in ("query", "execute", "chain", "transaction"):
            delattr(store, name)
        lines = []
        for sql, values in statements:
            if store.name == "sqlite":
                lines += [row[3] for row in store.query(f"EXPLAIN QUERY PLAN {sql}", values)]
            else:
                with store.transaction() as execute:
                    execute("SET LOCAL enable_seqscan = off")  # the tables are too small for an index to pay
                    lines += [row[0] for row in execute(f"EXPLAIN {sql}", values)]
        return lines

    return plan


@pytest.mark.parametrize(
    "verb",
    [
        lambda db: keep_update(db, update("ended"), HANDLERS, NOW + 60),
        lambda db: updates.count_repeat(db, update("ended")),
        lambda db: jobs.settle(db, [Change(1, NOW + 60, Job(name, "done", None), at_once=True) for name in HANDLERS]),
        lambda db: jobs.settle(
            db, [Change(1, NOW + 60, Job("update_crm", "pending", NOW, 1, NOW, "x"), failed_at=NOW)]
        ),
        lambda db: jobs.lease_due(db, "update_crm", NOW + 60, NOW + 120, 16, [7, 8]),
        lambda db: jobs.with_same_error(db, "alert_on_error", update("ended-with-error", "call-2", error="x")),
        lambda db: jobs.finish(db, "alert_on_error", [1]),
        lambda db: jobs.backlog(db),
        lambda db: jobs.retry_now(db, "update_crm", failed=True),
        lambda db: jobs.retry_now(db, "update_crm", failed=True, call_id="call-1"),
        lambda db: jobs.reset_far_future(db, 5400),
        lambda db: jobs.failed_attempts(db, "call-1"),
        lambda db: updates.of_call(db, "call-1"),
        lambda db: retention.prune(db, NOW, 500, HANDLERS),
    ],
)
def test_no_statement_looks_at_all_that_is_kept(plan, verb):
    lines = plan(verb)
    assert lines
    assert [line for line in lines if WHOLE_TABLE.search(line)] == []


def test_what_is_due_is_read_in_its_order(plan):
    """Else 100,000 jobs that are due at the same moment would be sorted for each that is done."""
    lines = plan(lambda db: jobs.lease_due(db, "update_crm", NOW + 60, NOW + 120, 16))
    assert any("jobs_open" in line for line in lines)
    due = "\n".join(lines).partition("SEARCH u")[0].partition("Sort Key: updates")[0]
    assert not re.search("TEMP B-TREE|Sort Key: jobs.due_at", due)
