"""The dashboard as a person sees it: a real Chromium, a real gunicorn."""

import time
from datetime import UTC, datetime

import pytest

from schemas.status_update import isoformat
from tests.conftest import PASSWORD, message, wait_until
from tests.screenshot import CHROMIUM, chromium, fill

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which is in requirements-dev.txt")
expect = playwright.expect
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")

NUMBER = "+31612345678"
OUTSIDE = """[...document.querySelectorAll("section *")].filter((each) => {
  const box = each.getBoundingClientRect(), around = each.closest("section").getBoundingClientRect();
  const outside = box.right > around.right + 1 || box.left < around.left - 1;
  return outside && box.width && !each.closest("thead, pre, .unseen");
}).map((each) => each.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def complaints():
    return []


@pytest.fixture
def page(receiver, browser, complaints):
    """A page in New York, closed before a receiver is; whatever its console complains of is a failure."""
    credentials = {"username": "", "password": PASSWORD, "send": "always"}
    context = browser.new_context(timezone_id="America/New_York", locale="en-GB", http_credentials=credentials)
    page = context.new_page()
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()
    assert complaints == []


def now():
    return isoformat(datetime.now(UTC))


def wait_for(page, selector, text):
    expect(page.locator(selector)).to_contain_text(text, timeout=20000)


def test_a_call_appears_ticks_and_goes_without_a_reload(page, receiver):
    server = receiver()
    page.goto(server.url)
    page.evaluate("window.loaded = 'once'")
    wait_for(page, "#active", "No updates yet")
    server.post(message(timestamp=now()))
    wait_for(page, "#active", NUMBER)
    wait_for(page, "#recent", "in progress")
    duration = page.locator("#active [data-since]")
    expect(duration).not_to_have_text(duration.inner_text())
    server.post(message("ended", timestamp=now()))
    wait_for(page, "#active", "No call is on.")
    wait_for(page, "#recent", "ended")
    assert page.evaluate("window.loaded") == "once"
    assert page.inner_text("#state") == "Live"


def test_what_a_sender_writes_is_text(page, receiver):
    server = receiver()
    page.goto(server.url)
    name, number = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
    server.post(message(call_id=number, phone_number={"name": name, "number": number}, customer={"number": number}))
    wait_for(page, "#active", name)
    assert page.locator("main script, main img").count() == 0
    page.locator("#active a").click()
    wait_for(page, "h1", number)
    assert page.locator("dd code").inner_text() == number


def test_run_again_delivers(page, receiver, service):
    service.answers = [(404, {}, b"no such contact")]
    server = receiver(CRM_WEBHOOK_URL=service.url)
    server.post(message())
    page.goto(server.url)
    wait_for(page, "#attention", "update_crm: 1 update failed. Last error: answered 404: no such contact.")
    page.locator("#recent a").click()
    wait_for(page, ".handlers", "failed")
    with page.expect_navigation():
        page.get_by_role("button", name="Run again").click()
    wait_until(lambda: len(service.bodies) == 2)
    assert service.bodies[0] == service.bodies[1]
    wait_until(lambda: page.reload() and page.locator(".status.over").count() == 2)
    page.get_by_role("link", name="All calls").click()
    assert "update_crm" not in page.inner_text("#attention")


def test_it_says_when_it_is_not_live_and_recovers(page, receiver, complaints):
    server = receiver()
    page.clock.install()
    page.goto(server.url)
    server.stop()
    page.clock.run_for(2000)
    wait_for(page, "#state", "Not live since")
    receiver(PORT=str(server.port)).post(message(timestamp=now()))
    page.clock.run_for(4000)
    wait_for(page, "#active", NUMBER)
    wait_for(page, "#state", "Live")
    assert all("ERR_CONNECTION_REFUSED" in each or "ERR_EMPTY_RESPONSE" in each for each in complaints)
    complaints.clear()


def test_it_backs_off_and_does_not_ask_while_hidden(page, receiver, complaints):
    server, asked = receiver(), []
    page.clock.install(time=0)
    page.goto(server.url)
    page.clock.pause_at(1)
    page.on("request", lambda request: asked.append(request.url))
    page.route("**/live", lambda route: route.abort())
    for wait in (2000, 4000, 8000, 16000, 30000, 30000):
        page.clock.run_for(wait - 1000)
        before = len(asked)
        with page.expect_event("requestfailed"):
            page.clock.run_for(1000)
        assert len(asked) == before + 1
    wait_for(page, "#state", "Not live")
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.clock.run_for(10 * 60 * 1000)
    assert len(asked) == 6
    page.unroute("**/live")
    with page.expect_response("**/live"):
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    wait_for(page, "#state", "Live")
    complaints.clear()


def test_times_are_in_the_viewers_zone(page, receiver):
    server = receiver()
    server.post(message(call_id="a/b c"))
    page.goto(f"{server.url}/calls/a/b%20c")
    wait_for(page, ".facts", "13 Dec, 07:00:00")


def test_the_chart_tells_its_figures_and_keeps_the_focus(page, receiver):
    server = receiver()
    server.post(message(call_id="first", timestamp=now()))
    page.goto(server.url)
    told = page.locator("svg .figures >> visible=true")
    expect(told).to_have_count(0)
    page.locator("svg rect.calls").last.hover()
    expect(told).to_contain_text(": 1 call, 0 errors")
    page.locator("summary").click()
    page.mouse.move(0, 0)
    expect(told).to_have_count(0)
    page.locator("svg g").last.focus()
    server.post(message(call_id="second", timestamp=now()))
    expect(told).to_contain_text(": 2 calls, 0 errors")
    expect(page.locator("details td").first).to_have_text("2")


@pytest.mark.parametrize("active", [0, 3, 300])
def test_the_page_fits_every_screen(page, receiver, tmp_path, active):
    fill(tmp_path / "calls.db", active, time.time())
    page.goto(receiver(WEBHOOK_SECRET="x").url)
    expect(page.locator("#active tbody tr")).to_have_count(active)
    look_at_every_size(page, tmp_path, f"{active}-active")


def test_a_timeline_fits_every_screen(page, receiver, service, tmp_path):
    service.default = (404, {}, b"no such contact " * 20)
    server = receiver(CRM_WEBHOOK_URL=service.url)
    server.post(message(call_id="call-_+31612345678_" + "f" * 200))
    server.post(message("ended-with-error", "call-_+31612345678_" + "f" * 200, error="nospacesinthis" * 50))
    page.goto(server.url)
    page.locator("#recent a").click()
    expect(page.locator(".handlers")).to_have_count(2)
    look_at_every_size(page, tmp_path, "timeline")


def look_at_every_size(page, folder, name):
    for width in (1280, 360):
        page.set_viewport_size({"width": width, "height": 900})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            assert page.evaluate(OUTSIDE) == []
            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
