"""Locks: what one of all processes has to itself for a time."""

from stores.database import Database

SKEW = 2.0  # seconds by which the processes' clocks may differ


def acquire(db: Database, name: str, seconds: float, longest: float | None = None) -> bool:
    """Atomically lock `name` for `seconds`, unless somebody has it. Returns whether.

    Nobody locks it for more than `longest` seconds, which are `seconds` unless something else is given: a lock that
    ends later was made by a clock that ran ahead, and is over."""
    rows = db.execute(
        "INSERT INTO locks AS l (name, until) VALUES (:name, :now + :seconds) ON CONFLICT (name)"
        " DO UPDATE SET until = excluded.until WHERE l.until <= :now OR l.until > :now + :longest RETURNING 1",
        {"name": name, "now": db.now(), "seconds": seconds, "longest": max(seconds, longest or 0) + SKEW},
    )
    return bool(rows)


def renew(db: Database, name: str, seconds: float) -> None:
    """Lock `name` for `seconds` from now, whoever has it."""
    db.execute(
        "INSERT INTO locks (name, until) VALUES (:name, :until)"
        " ON CONFLICT (name) DO UPDATE SET until = excluded.until",
        {"name": name, "until": db.now() + seconds},
    )


def release(db: Database, name: str) -> bool:
    """Atomically let go of a lock, whoever has it. Returns whether somebody had it."""
    values = {"name": name, "now": db.now()}
    return bool(db.execute("DELETE FROM locks WHERE name = :name AND until > :now RETURNING 1", values))


def ends_at(db: Database, name: str) -> float | None:
    """When the lock on `name` ends or ended; None where there was none."""
    rows = db.query("SELECT until FROM locks WHERE name = :name", {"name": name})
    return rows[0][0] if rows else None
