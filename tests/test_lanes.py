"""How a lane learns from what its handler's service does, and what that means for requests."""

import threading
import time

import pytest

import work.lanes
from handlers import HANDLERS
from handlers.errors import Deferred, GiveUp, OutOfPatience, Retry, Unavailable
from handlers.event_log import log_event
from stores import StoreError
from stores.records import Change, Job
from tests.conftest import NOW, update, wait_until
from work.lanes import PLACES, Lane

pytestmark = pytest.mark.usefixtures("context")


class Service:
    """A handler whose service does what `result` says: an error that it raises, or None."""

    __name__ = "service"

    def __init__(self):
        self.result, self.calls = None, 0

    def __call__(self, update):
        self.calls += 1
        if self.result:
            raise self.result


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def lane(service):
    return Lane(service)


@pytest.fixture
def monotonic(monkeypatch):
    """The monotonic time, which passes only when a test says so."""
    moment = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    return moment


def attempt(lane, *results):
    """Call the handler once for each result, as the worker does; the lane's state then."""
    for result in results:
        lane.handler.result = result
        lane.call(update(), 1, Job(lane.name, "leased", NOW))
    return lane.state


FAILURE = Unavailable("answered 503")


def test_it_begins_well():
    assert Lane(Service()).state == "well"


@pytest.mark.parametrize(
    ("results", "state"),
    [
        ([FAILURE] * 2, "well"),
        ([FAILURE] * 3, "away"),
        ([FAILURE, FAILURE, None, FAILURE, FAILURE], "well"),
        ([FAILURE, FAILURE, Retry("answered 401"), FAILURE], "well"),  # any other answer says that it is there
        ([FAILURE, FAILURE, GiveUp("answered 410"), FAILURE], "well"),
        ([FAILURE, FAILURE, Deferred("later"), FAILURE], "away"),  # these say nothing of the service
        ([FAILURE, FAILURE, StoreError("full"), ValueError("bug"), FAILURE], "away"),
        ([FAILURE, FAILURE, OutOfPatience("no answer yet"), FAILURE], "away"),
        ([OutOfPatience("no answer yet")], "slow"),
        ([OutOfPatience("no answer yet"), FAILURE], "slow"),
        ([OutOfPatience("no answer yet"), None], "well"),
        ([OutOfPatience("no answer yet"), Retry("answered 401")], "well"),
        ([Unavailable("answered 429", after=7)], "away"),
        ([FAILURE] * 3 + [None], "well"),
        ([FAILURE] * 3 + [Retry("answered 401")], "well"),
        ([FAILURE] * 3 + [OutOfPatience("no answer yet")], "away"),
        ([Retry("answered 401")] * 9, "well"),
    ],
)
def test_its_state_follows_from_what_the_service_did(lane, results, state):
    assert attempt(lane, *results) == state


@pytest.mark.parametrize(("seconds", "state"), [(1.0, "well"), (1.01, "slow")])
def test_a_service_that_takes_over_a_second_is_slow_until_it_no_longer_does(lane, monotonic, seconds, state):
    def take(seconds):
        lane.handler = lambda update: monotonic.__setitem__(0, monotonic[0] + seconds)
        lane.call(update(), 1, Job("service", "leased", NOW))
        return lane.state

    assert take(seconds) == state
    assert take(0.1) == "well"


def test_one_that_asks_nobody_is_always_well(monotonic):
    lane = Lane(log_event)
    lane.handler = lambda update: monotonic.__setitem__(0, monotonic[0] + 9)
    for _ in range(3):
        lane.call(update(), 1, Job("log_event", "leased", NOW))
    assert lane.state == "well"


def test_a_service_that_is_away_is_asked_every_30_seconds_or_when_it_says(lane, monotonic):
    attempt(lane, *[FAILURE] * 3)
    assert lane.asked_in() == 30
    monotonic[0] += 29
    assert lane.asked_in() == 1
    monotonic[0] += 2
    assert lane.asked_in() == 0
    attempt(lane, Unavailable("answered 429", after=120))
    assert lane.asked_in() == 120
    attempt(lane, Unavailable("answered 429", after=999999))
    assert lane.asked_in() == 3600
    attempt(lane, None)
    assert lane.asked_in() is None


def test_that_a_service_is_away_is_logged_once_and_that_it_is_back(lane, caplog):
    attempt(lane, *[FAILURE] * 5, None, None)
    events = [(record.message, record.handler) for record in caplog.records if "its service" in record.message]
    assert events == [("its service is away", "service"), ("its service is back", "service")]


def test_the_worker_may_start_as_many_jobs_as_all_went_well_and_one_where_the_service_was_away(lane, monotonic):
    assert lane.free_places() == 1
    attempt(lane, *[None] * 20)
    assert lane.free_places() == PLACES
    attempt(lane, FAILURE)
    assert lane.free_places() == PLACES / 2
    attempt(lane, FAILURE, FAILURE)
    assert lane.free_places() == 0
    monotonic[0] += 30
    assert lane.free_places() == 1


def test_a_job_that_runs_for_longer_than_it_may_holds_up_no_other_while_there_are_places(lane, monotonic):
    lane.running[0] = monotonic[0]
    monotonic[0] += 34.9
    assert lane.free_places() == 0
    monotonic[0] += 0.2
    assert lane.free_places() == 1
    lane.running |= dict.fromkeys(range(PLACES), lane.running[0])
    assert lane.free_places() == 0


def test_running_something_again_lets_a_service_that_is_away_be_asked_at_once(lane, monotonic):
    lane.ask_now()
    assert lane.asked_in() is None
    attempt(lane, *[FAILURE] * 3)
    lane.ask_now()
    assert (lane.state, lane.asked_in(), lane.work.is_set()) == ("away", 0, True)


@pytest.mark.parametrize("results", [[FAILURE] * 3, [OutOfPatience("no answer yet")]])
def test_a_request_calls_the_handler_only_while_the_lane_is_well(lane, results):
    attempt(lane, *results)
    calls = lane.handler.calls
    left = lane.call_in_request(update(), 1, NOW + 30)
    assert left == Change(1, NOW + 30, Job("service", "pending", NOW, error=str(results[-1])))
    assert lane.handler.calls == calls
    attempt(lane, None)
    change = lane.call_in_request(update(), 1, NOW + 30)
    assert (change.job.state, change.at_once) == ("done", True)


def test_so_many_requests_wait_for_a_service_and_the_rest_is_left_to_the_worker(app, lane):
    release, arrived = threading.Event(), threading.Semaphore(0)
    lane.handler = lambda update: (arrived.release(), release.wait(20))

    def request():
        with app.app_context():
            lane.call_in_request(update(), 1, NOW + 30)

    requests = [threading.Thread(target=request) for _ in range(PLACES)]
    for thread in requests:
        thread.start()
    for _ in requests:
        assert arrived.acquire(timeout=20)
    left = lane.call_in_request(update(), 1, NOW + 30)
    assert (left.job.state, left.job.attempts, left.failed_at) == ("pending", 0, None)
    worker = threading.Thread(target=lambda: lane.handler(update()))  # the worker's places are its own
    worker.start()
    assert arrived.acquire(timeout=20)
    release.set()
    for thread in (*requests, worker):
        thread.join()
    lane.handler = lambda update: 1 / 0  # which gives its place back, too
    for _ in range(PLACES + 1):
        assert lane.call_in_request(update(), 1, NOW + 30).job.error == "division by zero"
    wait_until(lambda: not arrived.acquire(blocking=False))


def test_there_is_one_for_each_handler_that_is_on(app):
    assert [lane.name for lane in work.lanes.get_lanes()] == ["log_event"]
    app.config |= {"CRM_WEBHOOK_URL": "http://127.0.0.1:9/", "SLACK_WEBHOOK_URL": "http://127.0.0.1:9/"}
    work.lanes.init_app(app)
    assert [lane.name for lane in work.lanes.get_lanes()] == ["log_event", "alert_on_error", "update_crm"]
    assert work.lanes.get_lane("track_call") is None
    assert len(HANDLERS) == 4


def test_an_alert_wants_only_calls_that_ended_with_an_error():
    lanes = {handler.__name__: Lane(handler) for handler in HANDLERS}
    wants = [name for name, lane in lanes.items() if lane.wants(update("ended"))]
    assert wants == ["log_event", "track_call", "update_crm"]
    assert all(lane.wants(update("ended-with-error")) for lane in lanes.values())
