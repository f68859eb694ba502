"""The dashboard as a person sees it: a real Chromium, a real gunicorn."""

import time
from datetime import UTC, datetime

import pytest

from schemas.times import isoformat
from tests.conftest import message, wait_until
from tests.screenshot import CHROMIUM, CREDENTIALS, chromium, fill
from tests.test_dashboard import BREAKING, HOSTILE

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, which is in requirements-dev.txt")
Axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="is in requirements-dev.txt").Axe
expect = playwright.expect
expect.set_options(timeout=20000)
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")

NUMBER = "+31612345678"
OUTSIDE = """[...document.querySelectorAll("section *")].filter((each) => {
  const box = each.getBoundingClientRect(), around = each.closest("section").getBoundingClientRect();
  const outside = box.right > around.right + 1 || box.left < around.left - 1;
  return outside && box.width && !each.closest("thead, .unseen");
}).map((each) => each.outerHTML.slice(0, 200))"""
SCROLLED = """[...document.querySelectorAll("main *")].filter((each) => {
  return each.scrollHeight > each.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(each).overflow);
}).map((each) => each.outerHTML.slice(0, 200))"""
SMALL = """[...document.querySelectorAll("a, button, summary, input:not([type=hidden]), select")].filter((each) => {
  const box = each.getBoundingClientRect();
  return box.height && box.height < 24 && !each.matches(".skip, svg *");
}).map((each) => each.outerHTML.slice(0, 200))"""  # the table of the chart has the links that its bars have


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
    context = browser.new_context(timezone_id="America/New_York", locale="en-GB", http_credentials=CREDENTIALS)
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
    expect(page.locator(selector)).to_contain_text(text)


def show(page, server, document):
    """Post an update, and let the page ask what is new now rather than within two seconds."""
    server.post(document)
    page.evaluate("poll()")


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
    line, customer = {"name": HOSTILE, "number": BREAKING}, {"number": BREAKING}
    show(page, server, message(call_id=BREAKING, phone_number=line, customer=customer))
    wait_for(page, "#active", HOSTILE)
    assert page.locator("main script, main img").count() == 0
    page.locator("#active a").click()
    wait_for(page, "h1", BREAKING)
    assert page.locator("dd code").inner_text() == BREAKING


def test_run_again_delivers(page, receiver, service):
    service.answers = [(410, {}, b"no such contact")]
    server = receiver(CRM_WEBHOOK_URL=service.url)
    server.post(message())
    page.goto(server.url)
    wait_for(page, "#attention", "update_crm: 1 update failed. Last error: answered 410: no such contact.")
    page.locator("#recent .who a").click()
    wait_for(page, ".handlers", "failed")
    with page.expect_navigation():
        page.get_by_role("button", name="Run again").click()
    wait_until(lambda: len(service.bodies) == 2)
    assert service.bodies[0] == service.bodies[1]
    wait_for(page, ".handlers", "attempt 2")
    wait_for(page, "#timeline li:last-child", "update_crm delivered in progress at")
    wait_for(page, "#timeline", ", after 0.0 s: answered 410: no such contact")
    page.get_by_role("link", name="All calls").click()
    assert "update_crm" not in page.inner_text("#attention")


def test_the_page_of_a_call_is_live_and_its_duration_ends_with_the_call(page, receiver):
    server = receiver()
    server.post(message(timestamp=now()))
    page.goto(f"{server.url}/calls?id=call-1")
    duration = page.locator("#facts [data-since]")
    expect(duration).to_have_text("3 s")
    show(page, server, message("ended", timestamp=now()))
    wait_for(page, "#facts", "ended")
    expect(duration).to_have_count(0)
    expect(page.locator("#timeline h3")).to_have_count(2)
    assert page.inner_text("#state") == "Live"


def test_nothing_is_taken_from_under_a_mouse_or_a_selection(page, receiver):
    server, links = receiver(), page.locator("#recent .who a")
    server.post(message(call_id="a", timestamp=now()))
    page.goto(server.url)
    links.hover()
    for call_id in "bc":
        show(page, server, message(call_id=call_id, timestamp=now()))
    news = page.get_by_role("button", name="2 new calls")
    expect(news).to_be_visible()
    expect(links).to_have_count(1)
    page.mouse.move(0, 0)
    expect(links).to_have_count(3)
    expect(news).to_be_hidden()
    page.evaluate("getSelection().selectAllChildren(document.getElementById('recent'))")
    show(page, server, message(call_id="d", timestamp=now()))
    page.get_by_role("button", name="1 new call").click()
    expect(links).to_have_count(4)


def test_the_search_is_reached_by_a_key_and_first_of_all(page, receiver, complaints):
    server = receiver()
    server.post(message(call_id="a"))
    page.set_viewport_size({"width": 390, "height": 600})
    for path in ("/", "/calls?id=a", "/calls?id=none", "/none"):
        page.goto(server.url + path)
        search = page.get_by_label("Number or call id")
        expect(search).to_be_in_viewport()
        page.keyboard.press("/")
        expect(search).to_be_focused()
        page.reload()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the search")).to_be_focused()
        page.keyboard.press("Enter")
        expect(search).to_be_focused()
        page.keyboard.type("nobody/")
        expect(search).to_have_value("nobody/")
    page.keyboard.press("Enter")
    wait_for(page, ".list", "No call with this number or id is kept.")
    assert len(complaints) == 4 and all("404" in line for line in complaints)  # two pages, and loaded again
    complaints.clear()


def test_a_dark_browser_prints_black_on_white(page, receiver, tmp_path):
    fill(tmp_path / "calls.db", 7, time.time())
    page.goto(receiver(WEBHOOK_SECRET="a secret").url)
    page.emulate_media(media="print", color_scheme="dark")
    colors = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('td')).color]"
    assert page.evaluate(colors) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)"]
    assert page.evaluate("getComputedStyle(document.querySelector('thead')).display") == "table-row-group"
    expect(page.locator("form >> visible=true")).to_have_count(0)


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
    server, urls = receiver(), []
    page.clock.install(time=0)
    page.goto(server.url)
    page.clock.pause_at(1)
    page.on("request", lambda request: urls.append(request.url))
    page.route("**/live", lambda route: route.abort())
    for wait in (2000, 4000, 8000, 16000, 30000, 30000):
        page.clock.run_for(wait - 1000)
        before = len(urls)
        with page.expect_event("requestfailed"):
            page.clock.run_for(1000)
        assert len(urls) == before + 1
    wait_for(page, "#state", "Not live")
    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.clock.run_for(10 * 60 * 1000)
    assert len(urls) == 6
    page.unroute("**/live")
    with page.expect_response("**/live"):
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    wait_for(page, "#state", "Live")
    complaints.clear()


def test_times_are_in_the_viewers_zone(page, receiver):
    server = receiver()
    server.post(message(call_id="a/b c"))
    page.goto(f"{server.url}/calls?id=a/b%20c")
    wait_for(page, ".facts", "13 Dec, 07:00:00")


def test_the_chart_tells_its_figures_and_keeps_the_focus(page, receiver):
    server = receiver()
    server.post(message(call_id="first", timestamp=now()))
    page.goto(server.url)
    text = page.locator("svg .figures >> visible=true")
    expect(text).to_have_count(0)
    page.locator("svg rect.calls").last.hover()
    expect(text).to_contain_text(": 1 call, 0 errors")
    page.get_by_text("The same as a table").click()
    page.mouse.move(0, 0)
    expect(text).to_have_count(0)
    page.locator("svg .bar").last.focus()
    show(page, server, message(call_id="second", timestamp=now()))
    expect(text).to_contain_text(": 2 calls, 0 errors")
    expect(page.locator("figure td").first).to_have_text("2")


def test_the_page_fits_every_screen(page, receiver, tmp_path):
    fill(tmp_path / "calls.db", 17, time.time())
    page.goto(receiver(WEBHOOK_SECRET="a secret").url)
    expect(page.locator("#active tbody tr")).to_have_count(5)
    page.get_by_text("The same as a table").click()
    look_at_every_size(page)


def test_a_timeline_fits_every_screen(page, receiver, service):
    service.default = (410, {}, b"no such contact " * 20)
    server, call_id = receiver(CRM_WEBHOOK_URL=service.url), f"call-_{NUMBER}_{'f' * 200}"
    server.post(message(call_id=call_id))
    server.post(message("ended-with-error", call_id, error="nospacesinthis" * 50))
    page.goto(server.url)
    page.locator("#recent .who a").click()
    expect(page.locator(".handlers")).to_have_count(2)
    look_at_every_size(page)


def look_at_every_size(page):
    for width, scheme in ((390, "light"), (1280, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(OUTSIDE) == page.evaluate(SCROLLED) == page.evaluate(SMALL) == []
        report = Axe().run(page)
        assert report.violations_count == 0, report.generate_report()


@pytest.fixture
def failing(receiver, service, tmp_path):
    """A receiver with a day of calls, three that are on, and one whose CRM update failed after its own error."""
    service.answers = [(410, {}, b"no such contact")]
    fill(tmp_path / "calls.db", 3, time.time())
    server = receiver(CRM_WEBHOOK_URL=service.url)
    line = {"number": "+31850835037", "name": "\u062e\u0637 \u0627\u0644\u0627\u0633\u062a\u0642\u0628\u0627\u0644"}
    server.post(message("ended-with-error", "lost", now(), error="SIP 486 Busy here", phone_number=line))
    return server


def test_from_the_error_rate_to_the_answer_of_the_crm_in_four_clicks(page, failing):
    page.goto(failing.url)
    page.locator("#error-rate").click()
    expect(page.locator(".list tbody tr")).not_to_have_count(1)
    page.get_by_role("link", name="Work failed").click()
    expect(page.locator(".list tbody tr")).to_have_count(1)
    page.locator("#recent-lost").click()
    wait_for(page, ".handlers", "answered 410: no such contact")


@pytest.mark.parametrize("query", ["?days=30", "?status=ended-with-error&line=none&since=2026-01-01&search=7"])
def test_no_page_of_calls_has_a_barrier_or_scrolls_sideways(page, failing, query):
    page.goto(f"{failing.url}/{query}")
    look_at_every_size(page)


def test_without_scripts_calls_are_found_and_the_zone_is_told(browser, failing):
    context = browser.new_context(java_script_enabled=False, http_credentials=CREDENTIALS)
    page = context.new_page()
    page.goto(failing.url)
    wait_for(page, "header", "Times in UTC")
    wait_for(page, "header", "Not live: scripts are off")
    page.set_viewport_size({"width": 390, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.evaluate(OUTSIDE) == []
    page.locator("summary", has_text="Line, type").click()
    page.locator("input[name=error]").fill("486 busy")
    page.locator("input[name=since]").fill("2026-01-01T00:00")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#recent-lost")).to_be_visible()
    expect(page.locator(".list tbody tr", has_not_text="SIP 486")).to_have_count(0)
    page.get_by_label("Number or call id").fill(NUMBER[-4:])
    page.get_by_role("button", name="Find").click()
    page.locator("#recent-lost").click()
    wait_for(page, ".handlers", "no such contact")
    context.close()


def test_a_time_is_asked_for_in_the_viewers_zone_and_sent_in_utc(page, receiver):
    server = receiver()
    server.post(message())
    page.goto(server.url)
    wait_for(page, "header", "Times in America/New_York")
    page.locator("summary", has_text="Line, type").click()
    page.locator("input[name=until]").fill("2026-01-02T08:00")
    page.get_by_role("button", name="Show").click()
    assert page.url == f"{server.url}/?until=2026-01-02T13%3A00Z"
    expect(page.locator("input[name=until]")).to_have_value("2026-01-02T08:00")
    wait_for(page, ".chosen", "2 Jan, 08:00")


def test_numbers_stay_in_order_beside_text_that_runs_from_right_to_left(page, failing):
    page.goto(failing.url)
    number = page.locator("#recent tr", has=page.locator("#recent-lost")).locator("bdi", has_text="+31850835037")
    plus, three = number.evaluate("""(each) => [0, 1].map((at) => {
      const range = document.createRange();
      range.setStart(each.firstChild, at);
      range.setEnd(each.firstChild, at + 1);
      return range.getBoundingClientRect().left;
    })""")
    assert plus < three


def test_notifications_are_off_until_somebody_asks_for_them(page, receiver):
    server = receiver()
    page.context.grant_permissions(["notifications"], origin=server.url)
    page.add_init_script(
        "window.heard = []; window.Notification = class extends Notification {"
        " constructor(title, { body }) { super(title, { body }); heard.push(`${title}: ${body}`); } }"
    )
    server.post(message("ended-with-error", "first", now(), error="SIP 486"))
    page.goto(server.url)
    show(page, server, message("ended-with-error", "second", now(), error="SIP 486"))
    wait_for(page, "#all-errors", "2")
    button = page.get_by_role("button", name="Notify me")
    assert (button.get_attribute("aria-pressed"), page.evaluate("heard")) == ("false", [])
    button.click()
    expect(button).to_have_attribute("aria-pressed", "true")
    show(page, server, message("ended-with-error", "third", now(), error="STT failed"))
    [text] = page.evaluate("heard")
    assert text.startswith("A call failed: ") and "STT failed" in text
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
