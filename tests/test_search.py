"""Any call can be found, by what is known of it."""

import csv
import io
import random

import pytest

import stores
from dashboard.figures import FRESH
from dashboard.listing import spreadsheet_cell
from schemas.statuses import ERRORS
from stores import calls, numbers, search, updates
from stores.records import Job
from stores.search import Filters, find
from tests.conftest import NOW, URL, keep_update, message, settle_jobs, update
from tests.test_dashboard import HOSTILE, page

DAY = 24 * 3600
CRM = ["update_crm"]


def keep(db, call_id, status="ended", at=NOW, handlers=(), **fields):
    return keep_update(db, update(status, call_id, at, **fields), handlers, NOW)


def line(number, name=None):
    return {"phone_number": {"number": number, "name": name}}


def ids(db, before=None, limit=50, **filters):
    return [call.id for call in find(db, Filters(**filters), before, limit).calls]


@pytest.fixture
def many(store):
    """Calls of every kind, newest first by number."""
    keep(store, "0-on", "in-progress", NOW, **line("+3110"))
    keep(store, "1-ended", "ended", NOW - 1, end_reason="user_hangup", **line("+3110"))
    keep(store, "2-busy", "ended-with-error", NOW - 2, error="SIP 486 Busy here", end_reason="error", **line("+3120"))
    keep(store, "3-mute", "ended-with-error", NOW - 3, error=None, **line(None))
    keep(store, "4-rings", "ringing", NOW - 4, call={"id": "4-rings", "status": "ringing", "type": "web_call"})
    keep(store, "5-busy", "ended-with-error", NOW - DAY, error="SIP 486", **line("+3110"))
    for number, status in enumerate(ERRORS[1:], 6):
        keep(store, f"{number}-{status}", status, NOW - DAY - number, error="SIP 480", **line("+3130"))
    return store


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "012345678"),
        ({"status": "in-progress"}, "0"),
        ({"status": "ended"}, "1"),
        ({"status": "ended-with-error"}, "235678"),
        ({"status": "failed"}, "6"),
        ({"status": "rejected"}, "7"),
        ({"status": "other"}, "4"),
        ({"status": "ringing"}, "4"),
        ({"error": "SIP 486"}, "25"),
        ({"error": "bUSY"}, "2"),
        ({"error": "486%"}, ""),
        ({"error": "none", "status": "ended-with-error"}, "3"),
        ({"end_reason": "error"}, "2"),
        ({"end_reason": "user"}, ""),
        ({"line": "+3110"}, "015"),
        ({"line": "none"}, "3"),
        ({"end_reason": "none"}, "0345678"),
        ({"type": "web_call"}, "4"),
        ({"since": NOW - 2}, "012"),
        ({"until": NOW - 2}, "345678"),
        ({"since": NOW - 3, "until": NOW}, "123"),
        ({"error": "SIP 486", "line": "+3110"}, "5"),
        ({"status": "ended-with-error", "line": "+3110", "since": NOW - 9}, ""),
        ({"status": "in-progress", "type": "inbound_phone_call"}, "0"),
        ({"search": "2-b"}, "2"),
        ({"search": "5-busy", "status": "ended"}, ""),
    ],
)
def test_every_filter_lets_through_what_it_says(many, filters, expected):
    assert "".join(id[0] for id in ids(many, **filters)) == expected


def test_an_error_is_found_by_any_characters_of_it(store):
    keep(store, "odd", "ended-with-error", error="100%_\\")
    keep(store, "even", "ended-with-error", error="100 x")
    for letters in ("%_", "\\", "0%_\\", "100%_\\"):
        assert ids(store, error=letters) == ["odd"]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("5678", ["a", "b"]),
        ("45678", ["a"]),
        ("+31612345678", ["a"]),
        ("06 1234-5678", ["a"]),
        ("0031 6 12345678", ["a"]),
        ("٠٦١٢٣٤٥٦٧٨", ["a"]),
        ("678", ["678-id"]),
        ("0007", ["zeros"]),
        ("5679", []),
        ("9012", ["90125678-id"]),
        ("90125", ["90125678-id"]),
        ("9012567", ["90125678-id"]),
        ("678-", ["678-id"]),
        ("%", []),
        ("_78-id", []),
        ("id", []),
    ],
)
def test_a_number_is_found_by_its_last_digits_and_an_id_by_its_beginning(store, typed, expected):
    keep(store, "a", at=NOW, customer={"number": "+31612345678"})
    keep(store, "b", at=NOW - 1, customer={"number": "+31600005678"})
    keep(store, "zeros", customer={"number": "+31612340007"})
    for id in ("678-id", "90125678-id"):
        keep(store, id, at=NOW - 2, customer={"number": None})
    assert ids(store, search=typed) == expected


FORMS = {
    "e164": "+12025550143",
    "dialled": "0012025550143",
    "grouped": "+1 (202) 555-0143",
    "national": "(202) 555-0143",
    "dotted": "202.555.0143",
    "sip": "sip:+12025550143@sip.example.com",
    "sips": "SIPS:2025550143;phone-context=x@10.0.0.1:5061",
    "named": '"Ann 2" <sip:0012025550143@10.0.0.1>',
    "tel": "tel:+1-202-555-0143",
}
OTHERS = {
    "another": "+12025550144",
    "longer": "+120255501435",
    "abroad": "+442025550143",
    "host": "sip:bob@2025550143.example.com",
}


@pytest.mark.parametrize("typed", FORMS.values())
def test_a_number_is_found_in_any_form_that_was_sent(store, typed):
    for call_id, number in (FORMS | OTHERS).items():
        keep(store, call_id, customer={"number": number})
    expected = {*FORMS} | ({"abroad"} if "1" not in typed.partition("202")[0] else set())
    assert {*ids(store, search=typed)} == expected


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("anonymous", ["anonymous"]),
        ("Anonymous", []),
        ("alice", ["alice", "alice again"]),
        ("sip:alice@sip.example.com", ["alice"]),
        ("lice", []),
        ("1001", ["extension"]),
        ("sip:1001@pbx", ["extension"]),
        ("100%_\\", ["odd"]),
    ],
)
def test_a_sip_user_and_a_name_are_found_as_written(store, typed, expected):
    for call_id, number in {
        "odd": "100%_\\",
        "extension": "sip:1001@pbx",
        "alice again": '"Alice" <sips:alice@10.0.0.1>',
        "alice": "sip:alice@sip.example.com",
        "malice": "sip:malice@sip.example.com",
        "anonymous": "anonymous",
    }.items():
        keep(store, f"c-{call_id}", customer={"number": number})
    assert sorted(ids(store, search=typed)) == [f"c-{call_id}" for call_id in expected]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("31612345678", "0612345678", True),
        ("0031612345678", "31612345678", True),
        ("612345678", "31612345678", True),
        ("12345678", "31612345678", False),
        ("012345678", "31612345678", False),
        ("025550143", "12025550143", True),
        ("33612345678", "31612345678", False),
        ("1001", "1001", True),
        ("1001", "21001", False),
    ],
)
def test_two_numbers_are_the_same_by_all_digits_or_the_last_nine_or_more(one, other, same):
    assert numbers.are_same(one, other) == numbers.are_same(other, one) == same


def pages(db, filters, limit=50):
    """Every page of the list, from the newest on."""
    before = None
    while True:
        page = find(db, filters, before, limit)
        yield page
        if not (before := page.older):
            return


def test_pages_have_each_call_once_also_where_many_came_in_one_moment(store):
    chance = random.Random(1)
    for number in range(60):
        keep(store, f"{number:03}", chance.choice(("ended", "ended-with-error")), NOW - number // 20)
    for filters in (Filters(), Filters(status="ended-with-error"), Filters(status="ended"), Filters(search="0")):
        whole, parts = find(store, filters, limit=100).calls, [page.calls for page in pages(store, filters, 7)]
        assert len(whole) > 10
        assert {len(part) for part in parts[:-1]} == {7}
        assert sum(parts, []) == whole


def test_calls_are_found_by_the_work_that_is_pending_or_failed(store):
    for number, state in enumerate(("pending", "failed", "leased", "done")):
        id = keep(store, state, at=NOW - number, handlers=[*CRM, "alert_on_error"])
        due_at = NOW + 60 if state in ("pending", "leased") else None
        settle_jobs(store, (id, NOW, [Job("update_crm", state, due_at, 1, NOW, "answered 404", NOW)]))
        settle_jobs(store, (id, NOW, [Job("alert_on_error", "done", None, 1)]))
    assert ids(store, work="pending") == ["pending", "leased"]
    assert ids(store, work="failed") == ids(store, work="failed", handler="update_crm") == ["failed"]
    assert ids(store, work="failed", handler="alert_on_error") == []
    assert ids(store, work="failed", status="ended", search="fail") == ["failed"]
    assert ids(store, work="failed", status="ended-with-error") == []


@pytest.mark.parametrize(
    ("filters", "step"),
    [
        ({}, "SEARCH calls USING INDEX calls_received (received_at>? AND received_at<?)"),
        (
            {"line": "+3110", "error": "busy"},
            "SEARCH calls USING INDEX calls_received (received_at>? AND received_at<?)",
        ),
        ({"search": "+31612345678", "since": NOW}, "SEARCH calls USING INDEX calls_ending (<expr>=?)"),
        ({"work": "failed"}, "SCAN jobs USING INDEX jobs_open"),
        ({"work": "failed", "handler": "x"}, "SEARCH jobs USING INDEX jobs_open (handler=? AND due_at=?)"),
    ],
)
def test_a_page_is_one_statement_that_an_index_answers(app, monkeypatch, filters, step):
    store, statements = app.extensions["store"], []
    read = store.query
    monkeypatch.setattr(store, "query", lambda *statement: (statements.append(statement), read(*statement))[1])
    assert find(store, Filters(**filters)) == search.Page([])
    [(sql, values)] = statements
    plan = [row[-1] for row in read(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert step in plan
    assert not [step for step in plan if step.startswith(("SCAN calls", "SCAN updates"))]


def test_what_there_is_to_choose_from_is_what_is_kept(many, monkeypatch):
    keep(many, "renamed", at=NOW - 9 * DAY, **line("+3120", "Clinic"))
    for number in range(9):
        keep(many, f"again {number}", "ended-with-error", error="SIP 486 Busy here", **line("+3120"))
    offered = search.choices(many)
    assert offered["lines"] == {
        **dict.fromkeys(("+3110", "+3130", None)),
        "+31850835037": "HMS Sovereign Demo",
        "+3120": "Clinic",
    }
    assert offered["types"] == ["inbound_phone_call", "web_call"]
    assert offered["end_reasons"] == ["error", "user_hangup"]
    assert [error for error in offered["errors"] if error != "SIP 480"] == ["SIP 486 Busy here", "", "SIP 486"]
    monkeypatch.setattr(search, "OFFERED", 1)
    few = search.choices(many)
    assert [len(values) for values in few.values()] == [1, 1, 1, 1]
    assert few["errors"] == ["SIP 486 Busy here"]


def test_what_senders_make_very_long_is_kept_and_found(store):
    text = "".join(chr(0x4E00 + number % 20000) for number in range(0, 90000, 13))  # nothing that compresses
    fields = {"phone_number": {"number": text, "name": text}, "customer": {"number": text}, "error": text}
    keep(store, "long", "ended-with-error", call={"id": "long", "status": "ended-with-error", "type": text}, **fields)
    call = calls.get(store, "long")
    assert (call.error, call.line) == (text, text)
    assert ids(store, error=text[9:99]) == ids(store, line=call.line) == ids(store, type=call.type) == ["long"]
    assert updates.of_call(store, "long")[0].load().error == text


def test_each_state_of_the_list_is_a_url_and_every_filter_can_be_taken_off(client):
    client.post(URL, json=message("ended-with-error", "failed", error=HOSTILE))
    client.post(URL, json=message("ended", "well"))
    listing = page(client, "/", query_string={"error": HOSTILE, "line": "+31850835037", "status": "ended-with-error"})
    assert listing.recent == ["failed"]
    assert "Needs attention" not in listing.text and "Last 24 hours" not in listing.text
    taken_off = [link["href"] for link in listing.all("a") if (link.get("aria-label") or "").startswith("Without")]
    assert len(taken_off) == 2
    for path in taken_off:
        assert "failed" in page(client, path).recent


def test_pages_of_fifty_lead_to_older_ones_and_back(client, clock):
    for number in range(101):
        clock.now += 1
        client.post(URL, json=message(call_id=f"{number:03}"))
    pages = [page(client, "/?status=in-progress")]
    for _ in range(2):
        pages.append(page(client, pages[-1].links["older"]))
    assert [len(each.recent) for each in pages] == [50, 50, 1]
    assert pages[0].recent[0] == "100" and pages[2].recent == ["000"]
    assert "newer" not in pages[0].links and "older" not in pages[2].links
    back = page(client, pages[2].links["newer"])
    assert back.recent == pages[1].recent
    assert page(client, back.links["newer"]).recent == page(client, pages[2].links["newest"]).recent == pages[0].recent


def test_json_takes_the_same_filters_and_names_the_next_page(client, clock):
    for number in range(60):
        clock.now += 1
        client.post(URL, json=message("ended" if number % 2 else "ended-with-error", f"{number:02}"))
    first = client.get("/calls.json?status=ended").json
    assert [call["id"] for call in first["recent"]][:2] == ["59", "57"]
    assert first["next"] is None
    first = client.get("/calls.json?since=2027-01-15T08:30:01Z").json
    second = client.get(first["next"]).json
    assert [len(each["recent"]) for each in (first, second)] == [50, 10]


@pytest.mark.parametrize(
    "query", ["since=yesterday", "until=0000", "before=x", "before=nan~x", "before=-inf~x", "before=~x"]
)
@pytest.mark.parametrize("path", ["/", "/live", "/calls.json"])
def test_a_url_that_makes_no_sense_is_400(client, path, query):
    assert client.get(f"{path}?{query}").status_code == 400


@pytest.mark.parametrize("name", ["search", "status", "work", "handler", "error", "end_reason", "line", "type"])
def test_what_no_database_takes_is_not_found(many, name):
    for text in ("a\0b", "a\ud800b"):
        assert ids(many, **{name: text}) in ([], ids(many))  # neither a handler alone nor other work is a filter
    assert len(ids(many)) == 9


def test_every_figure_leads_to_its_calls(app, client):
    store = app.extensions["store"]
    for number, error in enumerate(("SIP 486", None, "SIP 486", None)):
        id = keep(store, f"{number}", "ended-with-error" if error else "ended", NOW - 9, CRM, error=error)
        state, due_at = ("failed", None) if number == 2 else ("pending", NOW - 1)
        settle_jobs(store, (id, NOW, [Job("update_crm", state, due_at, 1, NOW, "x", NOW)]))
    keep(store, "yesterday", "ended-with-error", NOW - DAY, error="SIP 486")
    keep(store, "says more", "ended-with-error", NOW - 9, error="SIP 486 Busy")
    keep(store, "says much", "ended-with-error", NOW - 9, error="x" * 300)
    keep(store, "other line", "ended", NOW - 9, **line("+3199", "Other"))
    links = page(client).links

    def linked(name):
        return set(page(client, links[name]).recent)

    all_calls = {"0", "1", "2", "3", "other line", "says more", "says much"}
    assert linked("all-calls") == linked("bar-2027-01-15T08:00:00.000Z") == all_calls
    assert (
        linked("all-errors")
        == linked("error-rate")
        == linked("errors-+31850835037")
        == all_calls - {"1", "3", "other line"}
    )
    assert [linked(f"error-{number}") for number in (1, 2, 3)] == [{"0", "2"}, {"says more"}, {"says much"}]
    assert linked("line-+3199") == {"other line"}
    assert linked("/?work=failed&handler=update_crm") == {"2"}


def test_the_last_24_hours_stand_beside_those_before(app, client):
    store = app.extensions["store"]
    for number, (ago, status) in enumerate(
        [(60, "ended"), (7200, "ended-with-error"), (DAY + 60, "ended"), (DAY + 7200, "ended"), (2 * DAY, "ended")]
    ):
        keep(store, f"{number}", "in-progress", NOW - ago, timestamp="2025-12-13T12:00:00Z")
        keep(store, f"{number}", status, NOW - ago, timestamp=f"2025-12-13T12:01:{number}0Z")
    keep(store, "later than now, yesterday", at=NOW - DAY + 60)
    day = client.get("/calls.json").json["last_24_hours"]
    figures = {"calls": 2, "errors": 1, "error_rate": 0.5, "mean_seconds": 65.0}
    assert day.items() >= figures.items()
    assert day["lines"][0] == {"line": "+31850835037", "line_name": "HMS Sovereign Demo", **figures}
    assert day["before"] == {"calls": 2, "errors": 0, "error_rate": 0, "mean_seconds": 85.0}
    assert len(day["hours"]) == 24 and sum(each["calls"] for each in day["hours"]) == 2
    hour = {"hour": "2027-01-15T08:00:00.000Z", "until": "2027-01-15T09:00:00.000Z"}
    assert day["hours"][-1] == {**hour, "calls": 1, "errors": 0}
    text = page(client).text
    assert "Calls 2 as before Errors 1 up from 0 Error rate 50.0 % up from 0.0 %" in text
    assert "Mean duration 1 min 5 s down from 1 min 25 s" in text
    text = page(client, "/?days=7").text
    assert "Last 7 days" in text and "beside" not in text
    assert "Calls 6 Errors 1" in text


@pytest.fixture
def lookups(monkeypatch):
    """How often the page looked up what there is to choose from."""
    made, look_up = [], search.choices
    monkeypatch.setattr(search, "choices", lambda db: (made.append(db), look_up(db))[1])
    return made


def test_figures_are_counted_again_after_some_seconds(app, client, clock):
    def count():
        return client.get("/calls.json").json["last_24_hours"]["calls"]

    assert count() == 0
    keep(app.extensions["store"], "a", at=NOW - 7200)
    clock.now += FRESH - 1
    assert count() == 0
    clock.now += 1
    assert count() == 1
    keep(app.extensions["store"], "b", at=NOW - 7200)
    clock.now -= 3600  # put right
    assert count() == 2


def test_a_line_has_the_name_that_it_was_last_given(app, client):
    for ago, name in ((7200, "Zed"), (3600, "Alpha"), (0, None)):
        keep(app.extensions["store"], f"{ago}", at=NOW - ago, **line("+3110", name))
    assert client.get("/calls.json").json["last_24_hours"]["lines"][0]["line_name"] == "Alpha"


def test_what_the_form_offers_is_what_is_kept_and_looked_up_once_a_minute(app, client, clock, lookups):
    keep(app.extensions["store"], "a", "ended-with-error", NOW - 20 * DAY, error="SIP 486", end_reason="max_duration")
    listing = page(client, "/?end_reason=gone")
    options = [option["value"] for option in listing.all("option") if option["value"]]
    assert options == ["+31850835037", "inbound_phone_call", "SIP 486", "max_duration", "gone"]
    assert "Max duration" in listing.text
    client.get("/live")
    clock.now += 59
    page(client)
    assert len(lookups) == 1
    clock.now += 1
    page(client)
    assert len(lookups) == 2


def test_of_many_errors_and_lines_those_with_most_calls_are_listed_and_the_others_counted(app, client):
    for number in range(60):
        keep(
            app.extensions["store"],
            f"{number}",
            "ended-with-error",
            error=f"E {number % 59}",
            **line(f"+{number % 58}"),
        )
    day = client.get("/calls.json").json["last_24_hours"]
    assert [len(day[name]) for name in ("errors_by_message", "lines")] == [50, 50]
    assert (day["more_errors"], day["more_lines"]) == (9, 8)
    assert day["errors_by_message"][0] == {"error": "E 0", "calls": 2, "latest": "2027-01-15T08:30:00.000Z"}
    text = page(client).text
    assert "And 52 other lines." in text and "And 51 other messages." in text


class TestDownload:
    @pytest.fixture(autouse=True)
    def kept(self, client):
        formulas = {"error": "@SUM(A1)", **line("0850835037", "=cmd|' /C'!A0")}
        client.post(URL, json=message("ended-with-error", "=1+1", **formulas))
        client.post(URL, json=message("ended", "well", **line("+3110", 'خط أول, "one"\n')))

    def test_csv_has_times_and_numbers_as_they_are_and_no_formula(self, client):
        answer = client.get("/calls.csv")
        assert answer.is_streamed and answer.mimetype == "text/csv"
        well, failed = csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"), newline=""))
        assert (failed["id"], failed["customer"], failed["error"]) == ("'=1+1", "+31612345678", "'@SUM(A1)")
        assert (failed["line"], failed["line_name"]) == ("'0850835037", "'=cmd|' /C'!A0")
        assert (well["id"], well["line_name"], well["error"], well["seconds"]) == ("well", 'خط أول, "one"\n', "", "")
        assert (well["received_at (UTC)"], well["started_at (UTC)"]) == ("2027-01-15 08:30:00", "")
        assert well["ended_at (UTC)"] == "2025-12-13 12:00:00"

    def test_it_has_every_call_that_the_filters_let_through(self, client, app):
        for number in range(1200):
            keep(app.extensions["store"], f"{number}", "ringing")
        assert len(client.get("/calls.csv?status=other").text.splitlines()) == 1200 + 1
        assert client.get("/calls.csv?since=x").status_code == 400


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("+31612345678", "+31612345678"),
        ("+123456789012345", "+123456789012345"),
        ("+1234567890123456", "'+1234567890123456"),
        ("+31 6 12345678", "'+31 6 12345678"),
        ("+1+cmd|' /C calc'!A0", "'+1+cmd|' /C calc'!A0"),
        ("0612345678", "'0612345678"),
        ("1e5", "'1e5"),
        ("-1", "'-1"),
        (" =1", "' =1"),
        ("x;=HYPERLINK(1)", "x;'=HYPERLINK(1)"),
        ('x; "@SUM(1)";-2', "x;' \"@SUM(1)\";'-2"),
        ("x\n=1\r+1\t-1", "x\n'=1\r'+1\t'-1"),
        ("+1;=2", "'+1;'=2"),
        ("SIP 486; no answer - a=b", "SIP 486; no answer - a=b"),
        (None, None),
        (60.5, 60.5),
    ],
)
def test_a_cell_is_no_formula_whatever_separates_cells(text, cell):
    assert spreadsheet_cell(text) == cell


def test_ids_sort_by_their_bytes_whatever_the_language_of_the_database(postgres, tmp_path, clock):
    db = stores.create({"DATABASE_URL": postgres.url, "SQLITE_PATH": str(tmp_path / "calls.db"), "CLOCK": clock})
    db.check()
    db.close()
    columns = postgres.execute(
        "SELECT table_name, column_name FROM information_schema.columns WHERE collation_name = 'C'"
        " AND table_schema = 'public' ORDER BY 1"
    )
    assert columns == [("calls", "id"), ("updates", "call_id")]


def test_a_number_is_read_in_no_time_however_long_it_is():  # without a limit, in half an hour
    assert numbers.digits("a" * 200_000) == numbers.digits("a:" * 100_000) == ""
