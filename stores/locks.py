"""Locks: what one of all processes has to itself for a time."""

from stores.database import Database

LONGEST = 25 * 3600.0  # seconds; a lock that ends later was made by a clock that ran ahead


def acquire(db: Database, name: str, seconds: float) -> bool:
    """Atomically lock `name` for `seconds` (0: until somebody asks again), unless somebody has it. Returns whether."""
    return bool(
        db.execute(
            "INSERT INTO locks AS l (name, until) VALUES (:name, :now + :seconds) ON CONFLICT (name)"
            " DO UPDATE SET until = excluded.until WHERE l.until <= :now OR l.until > :now + :longest RETURNING 1",
            {"name": name, "now": db.now(), "seconds": seconds, "longest": LONGEST},
        )
    )


def renew(db: Database, name: str, seconds: float) -> None:
    """Lock `name` for `seconds` from now, whoever has it; 0 releases it."""
    db.execute(
        "INSERT INTO locks (name, until) VALUES (:name, :until)"
        " ON CONFLICT (name) DO UPDATE SET until = excluded.until",
        {"name": name, "until": db.now() + seconds},
    )


def ends_at(db: Database, name: str) -> float | None:
    """When the lock on `name` ends or ended; None where there was none."""
    found = db.query("SELECT until FROM locks WHERE name = :name", {"name": name})
    return found[0][0] if found else None
