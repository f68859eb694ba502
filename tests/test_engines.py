"""Whatever is done in whatever order, both databases keep the same and report the same."""

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is in requirements-dev.txt")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stores
from stores import calls, jobs, retention
from stores import updates as kept_updates
from stores.records import Job
from tests.conftest import NOW, Clock, empty, keep_update, lease_next, recent, settle_jobs, update

HANDLERS = ("log_event", "update_crm\u00e9")
IDS = ("a", "a b", "call-_+31612345678_x", "call-_+316123456789:\u00e9", "12345678")
# None has a NUL, at which SQLite ends what it reads from JSON.
NUMBERS = (None, "", "+31612345678", "+31612345679", "1:a\tb", "\U0001f4de\x7f", "345678", "a")
STATUSES = ("in-progress", "ended", "ended-with-error", "failed", "ringing", "queued: \u00e9")
TEXTS = (None, "", "answered 500", "a\tb\n\u00e9\U0001f4de\x7f/\\\"'")

ids = st.sampled_from(IDS[:1] * 4 + IDS)
texts = st.sampled_from(TEXTS)
handlers = st.lists(st.sampled_from(HANDLERS), unique=True)
# 0.1 and thirds have more digits than a rounding script keeps; a step of its own makes each time unlike all others.
moments = st.integers(-5, 5).map(lambda n: n * 1800 + 0.1) | st.integers(-9, 9).map(lambda n: n / 3)
updates = st.fixed_dictionaries(
    {
        # Most often the first, so that verbs meet.
        "status": st.sampled_from(STATUSES[:1] * 4 + STATUSES),
        "call_id": st.sampled_from(IDS[:1] * 4 + IDS),
        "received_at": moments.map(lambda moment: NOW + moment),
        "timestamp": st.sampled_from(("2025-12-13T12:00:00.123Z", "2025-12-13T12:05:00Z")),
        "customer": st.sampled_from(NUMBERS).map(lambda number: {"number": number}),
        "phone_number": st.sampled_from(TEXTS).map(lambda name: {"number": name, "name": name}),
        "error": st.sampled_from(TEXTS),
        "end_reason": st.sampled_from(TEXTS),
    }
)


@st.composite
def record(draw):
    fields, pending, failed, lease = draw(updates), draw(handlers), draw(handlers), draw(st.none() | moments)
    failed = [name for name in failed if name not in pending]

    def do(db, step):
        until = lease and NOW + lease + step / 1e3
        one = update(**fields | {"received_at": fields["received_at"] + step / 1e3})
        return keep_update(db, one, pending, until, failed) is not None

    return do


@st.composite
def settle(draw):
    """As whoever has the job's lease does, or somebody who had it before."""
    call_id, done, failing, known = draw(ids), draw(handlers), draw(handlers), draw(st.booleans())
    due, attempts, error, late = draw(st.none() | moments), draw(st.integers(1, 99)), draw(texts), draw(st.booleans())

    def do(db, step):
        stored = next(iter(kept_updates.of_call(db, call_id)), None)
        if stored is None:
            return
        dues = [job.due_at for job in stored.jobs if job.is_open]
        state, due_at = ("failed", None) if due is None else ("pending", NOW + due + step / 1e3)
        ended = [Job(name, "done", None, attempts, None, None, NOW + step if late else None) for name in done]
        others = [Job(name, state, due_at, attempts, NOW + step / 3, error) for name in failing if name not in done]
        settle_jobs(db, (stored.id, dues[0] if dues and known else NOW, ended + others))

    return do


@st.composite
def lease(draw):
    handler, now = draw(st.sampled_from(HANDLERS)), draw(moments)

    def do(db, step):
        leased = lease_next(db, handler, NOW + now, NOW + now + 60 + step / 1e3)
        return leased and (leased[0]._replace(id=0), leased[1])

    return do


@st.composite
def retry_now(draw):
    options = {"failed": draw(st.booleans()), "call_id": draw(st.none() | ids)}
    handler = draw(st.sampled_from(HANDLERS))
    return lambda db, step: jobs.retry_now(db, handler, **options)


@st.composite
def bound(draw):
    seconds = draw(st.integers(0, 100))
    return lambda db, step: jobs.reset_far_future(db, seconds)


@st.composite
def forget(draw):
    number = draw(st.sampled_from([number for number in NUMBERS if number]))
    return lambda db, step: retention.remove(db, retention.calls_of(db, number))


@st.composite
def prune(draw):
    before, limit = draw(moments), draw(st.integers(1, 4))
    return lambda db, step: retention.prune(db, NOW + before, limit)


def reported(db):
    """What every reading verb returns, in the order it must have."""
    return {
        "active": calls.active(db),
        "recent": [recent(db, limit, search) for limit in (2, 50) for search in ("", IDS[0], NUMBERS[2])],
        "calls": [calls.get(db, id) for id in IDS],
        "updates": [[(each.call_id, each.status, each.jobs) for each in kept_updates.of_call(db, id)] for id in IDS],
        "since": [[each.message for each in kept_updates.since(db, since)] for since in (0, NOW + 1, NOW + 2)],
        "tallies": sorted(
            [tally._replace(seconds=round(tally.seconds, 3)) for tally in calls.tallies(db, 0)], key=repr
        ),
        "backlog": jobs.backlog(db),
        "latest": kept_updates.latest(db),
    }


@pytest.fixture
def pair(tmp_path, postgres):
    config = {"SQLITE_PATH": str(tmp_path / "calls.db"), "CLOCK": Clock()}
    pair = [stores.create(config | {"DATABASE_URL": url}) for url in (None, postgres.url)]
    yield pair
    for db in pair:
        db.close()


quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(
    verbs=st.lists(
        record() | record() | record() | settle() | lease() | retry_now() | bound() | forget() | prune(), max_size=25
    )
)
def test_both_databases_report_the_same(pair, verbs):
    for db in pair:
        empty(db)
    for step, do in enumerate(verbs):
        sqlite, postgres = (do(db, step) for db in pair)
        assert sqlite == postgres
    sqlite, postgres = map(reported, pair)
    for verb in sqlite:
        assert sqlite[verb] == postgres[verb], verb


changes = st.fixed_dictionaries(
    {
        "received_at": st.sampled_from([NOW, NOW + 1]),
        "timestamp": st.sampled_from((None, "2025-12-13T12:00:00Z", "2025-12-13T12:05:00Z")),
        "customer": st.sampled_from([None, {"number": None}, {"number": "+31612345678"}, {"number": "+31612345679"}]),
        "phone_number": st.sampled_from([None, {"number": None, "name": "Web"}, {"number": "+31850835037"}]),
        "call": st.fixed_dictionaries({"type": st.sampled_from([None, "inbound_phone_call", "web_call"])}),
        "error": st.sampled_from([None, "SIP 486", "STT failed"]),
        "end_reason": st.sampled_from([None, "user_hangup"]),
    }
)


@settings(quick, max_examples=100)
@given(
    life=st.dictionaries(st.sampled_from(STATUSES), changes, min_size=2),
    repeats=st.lists(st.tuples(st.sampled_from(STATUSES[:4]), changes), max_size=3),
    data=st.data(),
)
def test_a_call_does_not_depend_on_the_order_of_its_updates(pair, life, repeats, data):
    life = [update(status, **fields) for status, fields in (*life.items(), *repeats)]
    found = []
    for order in (life, life[::-1], data.draw(st.permutations(life))):
        for db in pair:
            empty(db)
            for each in order:
                if not keep_update(db, each, ()):
                    kept_updates.count_repeat(db, each)
            found.append((calls.get(db, "call-1"), calls.tallies(db, 0)))
    assert found == found[:1] * 6
    call = found[0][0]
    for name, values in (
        ("customer", [each.customer.number for each in life]),
        ("line_name", [each.phone_number.name for each in life]),
        ("type", [each.call.type for each in life]),
    ):
        assert getattr(call, name) in values and (getattr(call, name) is not None or set(values) == {None})
