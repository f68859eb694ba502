"""Locks: what one of all processes has to itself for a time."""

from stores import Database

LONGEST = 25 * 3600.0  # seconds; a lock that ends later was made by a clock that ran ahead


def acquire(db: Database, name: str, seconds: float) -> float:
    """Atomically lock `name` for `seconds` (0: until somebody asks again). Returns 0 where that was done, else for how
    many seconds it still is another's."""
    values = {"name": name, "now": db.now(), "seconds": seconds, "longest": LONGEST}
    locked = db.execute(
        "INSERT INTO locks AS l (name, until) VALUES (:name, :now + :seconds) ON CONFLICT (name)"
        " DO UPDATE SET until = excluded.until WHERE l.until <= :now OR l.until > :now + :longest RETURNING 1",
        values,
    )
    if locked:
        return 0.0
    found = db.query("SELECT until - :now FROM locks WHERE name = :name", values)
    return max(found[0][0] if found else 0.0, 0.001)


def hold(db: Database, name: str, seconds: float) -> None:
    """Lock `name` for `seconds` from now, whoever has it."""
    db.execute(
        "INSERT INTO locks (name, until) VALUES (:name, :until)"
        " ON CONFLICT (name) DO UPDATE SET until = excluded.until",
        {"name": name, "until": db.now() + seconds},
    )


def ends_at(db: Database, name: str) -> float | None:
    """When the lock on `name` ends or ended; None where there was none."""
    found = db.query("SELECT until FROM locks WHERE name = :name", {"name": name})
    return found[0][0] if found else None
