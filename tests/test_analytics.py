"""What docs/operations.md tells of the tables is so."""

import re

from stores.records import Job
from tests.conftest import NOW, ROOT, settle_jobs
from tests.test_search import CRM, DAY, keep

OPERATIONS = (ROOT / "docs/operations.md").read_text()


def test_the_documented_queries_answer_what_they_say(store):
    start, late = "2025-12-13T12:00:00Z", "2025-12-13T12:05:00Z"
    keep(store, "rejected", "rejected", NOW)
    for number, (ago, error) in enumerate(((0, "SIP 486"), (9, "SIP 503"), (9, None), (DAY, None))):
        keep(store, f"{number}", "in-progress", NOW - ago, timestamp=start)
        keep(store, f"{number}", "ended-with-error" if error else "ended", NOW - ago, timestamp=late, error=error)
    for seconds in (30, 90):
        job = Job("update_crm", "done", None, 2, NOW, "answered 503", NOW + seconds)
        settle_jobs(store, (keep(store, f"late {seconds}", "ringing", NOW, CRM), NOW, [job]))
    queries = re.findall(r":\n\n```sql\n(.*?)```", OPERATIONS, re.DOTALL)
    errors, minutes, slowest = map(store.query, queries)
    hour, day, line = int(NOW // 3600) * 3600, int(NOW // DAY) * DAY, "+31850835037"
    assert errors == [(hour, line, 3)]
    assert minutes == [(day, line, 15.0), (day - DAY, line, 5.0)]
    assert slowest == [(f"late {late:.0f}", "ringing", "update_crm", late, 2, "answered 503") for late in (90.0, 30.0)]


def test_every_column_is_documented(store):
    for table in ("calls", "updates", "jobs", "attempts"):
        rows = OPERATIONS.split(f"**`{table}`**")[1].split("\n\n")[1].splitlines()[2:]
        named = [name for row in rows for name in re.findall("`([a-z_]+)`", row.split("|")[1])]
        assert store.query(f"SELECT {', '.join(named)} FROM {table}") == []
        found = re.search(
            rf"TABLE IF NOT EXISTS {table} \((.*?)\n\);", (ROOT / "stores/schema.sql").read_text(), re.DOTALL
        )
        assert sorted(named) == sorted(re.findall("^  ([a-z_]+) ", found[1], re.MULTILINE))
