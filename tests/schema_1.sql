CREATE TABLE IF NOT EXISTS updates (
  id INTEGER PRIMARY KEY,
  call_id TEXT NOT NULL,
  status TEXT NOT NULL,
  received_at REAL NOT NULL,
  kept_at REAL NOT NULL,
  message TEXT NOT NULL,
  alike TEXT,
  UNIQUE (call_id, status)
);
CREATE INDEX IF NOT EXISTS updates_received ON updates (received_at);
CREATE INDEX IF NOT EXISTS updates_kept ON updates (kept_at);

-- What handlers have still to do. due is null once it has failed; leased while somebody does it, until due.
CREATE TABLE IF NOT EXISTS rows (
  call_id TEXT NOT NULL,
  status TEXT NOT NULL,
  handler TEXT NOT NULL,
  due REAL,
  leased INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  first_tried REAL,
  error TEXT,
  received_at REAL NOT NULL,
  PRIMARY KEY (call_id, status, handler)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS rows_due ON rows (handler, due, received_at);

-- Up to which of the updates whose errors are alike they have been reported, and when last.
CREATE TABLE IF NOT EXISTS reports (
  alike TEXT PRIMARY KEY,
  upto INTEGER NOT NULL,
  reported_at REAL NOT NULL,
  leased_until REAL NOT NULL
) WITHOUT ROWID;

-- Until when a chore is taken on.
CREATE TABLE IF NOT EXISTS claims (
  chore TEXT PRIMARY KEY,
  until REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS calls (
  id TEXT PRIMARY KEY,
  status TEXT NOT NULL,
  type TEXT,
  line TEXT,
  line_name TEXT,
  customer TEXT,
  received_at REAL NOT NULL,
  started_at REAL,
  start_received_at REAL,
  ended_at REAL,
  end_received_at REAL,
  error TEXT,
  end_reason TEXT,
  asked_at REAL,
  unknown INTEGER NOT NULL DEFAULT 0,
  seconds REAL AS (CASE WHEN ended_at >= started_at THEN ended_at - started_at END)
);
CREATE INDEX IF NOT EXISTS calls_active ON calls (start_received_at)
  WHERE start_received_at IS NOT NULL AND end_received_at IS NULL;
CREATE INDEX IF NOT EXISTS calls_recent ON calls (received_at);
CREATE INDEX IF NOT EXISTS calls_customer ON calls (customer, received_at);

-- calls, counted by the hour they were first heard of, status and error; kept right by the triggers.
CREATE TABLE IF NOT EXISTS figures (
  hour INTEGER,
  status TEXT,
  error TEXT,
  calls INTEGER,
  timed INTEGER,
  seconds REAL,
  latest REAL,
  PRIMARY KEY (hour, status, error)
) WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS calls_insert AFTER INSERT ON calls BEGIN
  INSERT INTO figures VALUES (CAST(new.received_at / 3600 AS INTEGER) * 3600, new.status, coalesce(new.error, ''),
    1, (new.seconds IS NOT NULL), coalesce(new.seconds, 0),
    max(new.received_at, coalesce(new.end_received_at, 0)))
  ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, timed = timed + excluded.timed,
    seconds = seconds + excluded.seconds, latest = max(latest, excluded.latest);
END;
CREATE TRIGGER IF NOT EXISTS calls_update AFTER UPDATE OF status, received_at, ended_at, error ON calls BEGIN
  INSERT INTO figures VALUES (CAST(old.received_at / 3600 AS INTEGER) * 3600, old.status, coalesce(old.error, ''),
    -1, -(old.seconds IS NOT NULL), -coalesce(old.seconds, 0),
    max(old.received_at, coalesce(old.end_received_at, 0)))
  ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, timed = timed + excluded.timed,
    seconds = seconds + excluded.seconds, latest = max(latest, excluded.latest);
  INSERT INTO figures VALUES (CAST(new.received_at / 3600 AS INTEGER) * 3600, new.status, coalesce(new.error, ''),
    1, (new.seconds IS NOT NULL), coalesce(new.seconds, 0),
    max(new.received_at, coalesce(new.end_received_at, 0)))
  ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, timed = timed + excluded.timed,
    seconds = seconds + excluded.seconds, latest = max(latest, excluded.latest);
END;
CREATE TRIGGER IF NOT EXISTS calls_delete AFTER DELETE ON calls BEGIN
  INSERT INTO figures VALUES (CAST(old.received_at / 3600 AS INTEGER) * 3600, old.status, coalesce(old.error, ''),
    -1, -(old.seconds IS NOT NULL), -coalesce(old.seconds, 0),
    max(old.received_at, coalesce(old.end_received_at, 0)))
  ON CONFLICT DO UPDATE SET calls = calls + excluded.calls, timed = timed + excluded.timed,
    seconds = seconds + excluded.seconds, latest = max(latest, excluded.latest);
END;

-- updates that were refused, counted by the hour.
CREATE TABLE IF NOT EXISTS refusals (
  hour INTEGER,
  reason TEXT,
  times INTEGER NOT NULL,
  latest REAL NOT NULL,
  PRIMARY KEY (hour, reason)
) WITHOUT ROWID;

PRAGMA user_version = 1; -- a write, so that whatever hinders writing is found out now
