"""Whatever is done in whatever order, both engines keep the same and tell the same."""

from collections import defaultdict

import pytest

pytest.importorskip("hypothesis", reason="hypothesis is in requirements-dev.txt")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stores
from stores import Row
from tests.conftest import NOW, update

HANDLERS = ("log_event", "update_crm\u00e9")
IDS = ("a", "a b", "call-_+31612345678_x", "call-_+316123456789:\u00e9", "12345678")
# None has a NUL, at which SQLite ends what it reads from JSON.
NUMBERS = (None, "", "+31612345678", "+31612345679", "1:a\tb", "\U0001f4de\x7f", "345678", "a")
STATUSES = ("in-progress", "ended", "ended-with-error", "ringing", "queued: \u00e9")
TEXTS = (None, "", "answered 500", "a\tb\n\u00e9\U0001f4de\x00\x7f/\\\"'")

handlers = st.lists(st.sampled_from(HANDLERS), unique=True)
# 0.1 and thirds have more digits than a rounding script keeps; a step of its own makes each time unlike all others.
moments = st.integers(-5, 5).map(lambda n: n * 1800 + 0.1) | st.integers(-9, 9).map(lambda n: n / 3)
updates = st.fixed_dictionaries(
    {
        # Most often the first, so that verbs meet.
        "status": st.sampled_from(STATUSES[:1] * 4 + STATUSES),
        "call_id": st.sampled_from(IDS[:1] * 4 + IDS),
        "received_at": moments.map(lambda moment: NOW + moment),
        "timestamp": st.sampled_from(("2025-12-13T12:00:00.123Z", "2025-12-13T12:05:00Z", "9999-12-31T23:59:59.999Z")),
        "customer": st.sampled_from(NUMBERS).map(lambda number: {"number": number}),
        "phone_number": st.sampled_from(TEXTS).map(lambda name: {"number": name, "name": name}),
        "error": st.sampled_from(TEXTS),
        "end_reason": st.sampled_from(TEXTS),
    }
)


@st.composite
def record(draw):
    fields, pending, failed = draw(updates), draw(handlers), draw(handlers)
    due, leased = draw(moments), draw(st.booleans())
    failed = [name for name in failed if name not in pending]

    def do(store, step):
        options = {"now": NOW + step / 7, "leased": leased, "failed": failed}
        return store.record(made(fields, step), pending, NOW + due + step / 1e3, **options)

    return do


@st.composite
def settle(draw):
    """As whoever has the row's lease does, or somebody who had it before."""
    fields, done, failing, known = draw(updates), draw(handlers), draw(handlers), draw(st.booleans())
    due, attempts, error = draw(st.none() | moments), draw(st.integers(0, 99)), draw(st.sampled_from(TEXTS))
    failing = [name for name in failing if name not in done]

    def do(store, step):
        one = made(fields, step)
        found = [kept for kept in store.call(one.call.id)[1] if kept.status == one.call.status]
        dues = [row.due for kept in found for row in kept.rows if row.due is not None]
        then = None if due is None else NOW + due + step / 1e3
        rows = [Row(name, then, attempts, NOW + step / 3 if attempts else None, error) for name in failing]
        store.settle(one, dues[0] if dues and known else NOW, done, rows)

    return do


@st.composite
def take(draw):
    handler, now = draw(st.sampled_from(HANDLERS)), draw(moments)
    return lambda store, step: store.take(handler, NOW + now, NOW + now + 60 + step / 1e3)


@st.composite
def hurry(draw):
    asked = {"failed": draw(st.booleans()), "call_id": draw(st.none() | st.sampled_from(IDS))}
    asked["handler"] = draw(st.none() | st.sampled_from(HANDLERS))
    return lambda store, step: store.hurry(NOW + step / 3, **asked)


@st.composite
def track(draw):
    fields = draw(updates)
    return lambda store, step: store.track(made(fields, step))


@st.composite
def forget(draw):
    number = draw(st.sampled_from([number for number in NUMBERS if number is not None]))
    return lambda store, step: store.forget(number)


@st.composite
def prune(draw):
    before, limit = draw(moments), draw(st.integers(1, 4))
    return lambda store, step: store.prune(NOW + before, limit)


def made(fields, step):
    return update(**fields | {"received_at": fields["received_at"] + step / 1e3})


def told(store):
    """What every reading verb returns, in the order it must have."""
    return {
        "active": store.active(),
        "recent": [store.recent(limit, search) for limit in (2, 50) for search in ("", IDS[0], NUMBERS[2], NUMBERS[5])],
        "calls": [store.call(id) for id in IDS],
        "updates": [list(store.updates(since)) for since in (0, NOW + 1, NOW + 2)],
        "figures": [[comparable(each) for each in store.figures(since)] for since in (0, NOW, NOW + 3600)],
        "backlog": [(each.handler, each.pending, each.failed, each.oldest) for each in store.backlog()],
        "check": store.check(),
    }


def comparable(figures):
    return figures.hour, figures.status, figures.error, figures.calls, figures.timed, round(figures.seconds, 3)


def last_errors(store):
    """By handler, what the backlog may tell as its error: the row's that is due last, any of those due as late."""
    errors = defaultdict(set)
    for kept in store.updates():
        for row in kept.rows:
            if row.error is not None:
                errors[row.handler].add((row.due if row.due is not None else float("-inf"), row.error))
    return {handler: {error for due, error in found if due == max(found)[0]} for handler, found in errors.items()}


@pytest.fixture
def pair(tmp_path, valkey):
    config = {"SQLITE_PATH": str(tmp_path / "calls.db"), "RETENTION_DAYS": 30, "REDIS_TLS_VERIFY": True}
    pair = [stores.create(config | {"REDIS_URL": url}) for url in (None, valkey.url)]
    yield pair
    for store in pair:
        store.close()


def empty(pair, valkey):
    valkey.flushall()
    with pair[0].write() as db:
        for table in ("updates", "rows", "calls", "figures"):
            db.execute(f"DELETE FROM {table}")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    verbs=st.lists(
        record() | record() | settle() | take() | hurry() | track() | track() | forget() | prune(), max_size=25
    )
)
def test_both_engines_tell_the_same(pair, valkey, verbs):
    empty(pair, valkey)
    for step, do in enumerate(verbs):
        sqlite, redis = (do(store, step) for store in pair)
        assert sqlite == redis
    sqlite, redis = map(told, pair)
    for verb in sqlite:
        assert sqlite[verb] == redis[verb], verb
    for store in pair:
        allowed = last_errors(store)
        assert all(each.error in allowed.get(each.handler, {None}) for each in store.backlog())
    assert valkey.smembers("active_calls") == {call.id for call in pair[1].active()}
    latest = [{(each.hour, each.status, each.error): each.latest for each in store.figures(0)} for store in pair]
    assert all(latest[1][figures] <= latest[0][figures] for figures in latest[1])
