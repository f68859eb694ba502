"""What one process claims from all others, in the SQLite file: a chore, and the report of an error."""

from schemas.status_update import StatusUpdate
from stores import Report
from stores.sqlite_file import SQLiteFile


class SQLiteClaims(SQLiteFile):
    """The contract is in `stores.Store`."""

    def claim(self, chore: str, now: float, seconds: float) -> bool:
        with self.write() as db:
            claimed = db.execute(
                "INSERT INTO claims VALUES (?1, ?2 + ?3)"
                " ON CONFLICT DO UPDATE SET until = excluded.until WHERE until <= ?2",
                (chore, now, seconds),
            )
            return claimed.rowcount == 1

    def claim_report(
        self, update: StatusUpdate, handler: str, now: float, interval: float, lease: float
    ) -> Report | None:
        with self.write() as db:
            key = (update.call.id, update.call.status)
            id, alike = db.execute(
                "SELECT max(id), alike FROM updates WHERE call_id = ? AND status = ?", key
            ).fetchone()
            mark = db.execute(
                "SELECT upto, reported_at, leased_until FROM reports WHERE alike = ?", (alike,)
            ).fetchone()
            upto, reported_at, leased_until = mark or (0, 0.0, 0.0)
            if id is None or id <= upto:
                return None
            ready_at = max(reported_at + interval, leased_until)
            if now < ready_at:
                return Report(ready_at - now)
            last, count = db.execute(
                "SELECT max(id), count(*) FROM rows JOIN updates USING (call_id, status)"
                " WHERE handler = ? AND alike = ? AND id > ?",
                (handler, alike, upto),
            ).fetchone()
            db.execute(
                "INSERT INTO reports VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET leased_until = ?4",
                (alike, upto, reported_at, now + lease),
            )
        return Report(0.0, max(count - 1, 0), max(last or 0, id))

    def settle_report(self, update: StatusUpdate, report: Report, now: float) -> None:
        with self.write() as db:
            db.execute(
                "UPDATE reports SET upto = max(upto, ?), reported_at = ?, leased_until = 0 WHERE alike = ?",
                (report.upto, now, update.alike),
            )
