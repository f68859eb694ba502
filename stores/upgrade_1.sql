-- From version 1, which was SQLite only: calls were counted by triggers, and jobs were rows keyed by call and status.

DROP TRIGGER calls_insert;
DROP TRIGGER calls_update;
DROP TRIGGER calls_delete;
DROP TABLE figures;
DROP TABLE reports;
DROP TABLE claims;
DROP INDEX calls_recent;
DROP INDEX calls_customer;

CREATE TABLE numbered (
  id {id},
  call_id TEXT NOT NULL,
  status TEXT NOT NULL,
  received_at DOUBLE PRECISION NOT NULL,
  kept_at DOUBLE PRECISION NOT NULL,
  message TEXT NOT NULL,
  error_group TEXT,
  UNIQUE (call_id, status)
);
INSERT INTO numbered SELECT id, call_id, status, received_at, kept_at, message, alike FROM updates;
DROP TABLE updates;
ALTER TABLE numbered RENAME TO updates;
CREATE INDEX updates_received ON updates (received_at);

CREATE TABLE jobs (
  update_id BIGINT NOT NULL REFERENCES updates (id) ON DELETE CASCADE,
  handler TEXT NOT NULL,
  state TEXT NOT NULL,
  due_at DOUBLE PRECISION,
  attempts INTEGER NOT NULL DEFAULT 0,
  first_tried_at DOUBLE PRECISION,
  error TEXT,
  done_at DOUBLE PRECISION,
  PRIMARY KEY (update_id, handler)
);
INSERT INTO jobs (update_id, handler, state, due_at, attempts, first_tried_at, error)
  SELECT updates.id, handler, CASE WHEN due IS NULL THEN 'failed' WHEN leased THEN 'leased' ELSE 'pending' END,
    due, attempts, first_tried, error
  FROM rows JOIN updates USING (call_id, status);
DROP TABLE rows;
CREATE INDEX jobs_open ON jobs (handler, due_at) WHERE state <> 'done';

ALTER TABLE calls RENAME COLUMN asked_at TO checked_at;
ALTER TABLE calls ADD COLUMN hour BIGINT NOT NULL DEFAULT 0;
ALTER TABLE calls ADD COLUMN updated_at DOUBLE PRECISION NOT NULL DEFAULT 0;
UPDATE calls SET error = substr(error, 1, 300), hour = CAST(received_at / 3600 AS INTEGER) * 3600,
  updated_at = max(received_at, coalesce(start_received_at, 0), coalesce(end_received_at, 0));
CREATE INDEX calls_received ON calls (received_at);
CREATE INDEX calls_line ON calls (line, received_at);
CREATE INDEX calls_type ON calls (type, received_at);
CREATE INDEX calls_ending ON calls (substr(customer, length(customer) - 3), received_at);
CREATE INDEX calls_failed ON calls (received_at) WHERE status = 'ended-with-error';
CREATE INDEX calls_error ON calls (coalesce(error, ''), received_at) WHERE status = 'ended-with-error';
CREATE INDEX calls_other ON calls (received_at) WHERE status NOT IN ('in-progress', 'ended', 'ended-with-error');
CREATE INDEX calls_hourly ON calls (hour, line, status, error, received_at, started_at, ended_at);

CREATE TABLE locks (name TEXT PRIMARY KEY, until DOUBLE PRECISION NOT NULL);
CREATE TABLE troubles (name TEXT PRIMARY KEY, since DOUBLE PRECISION NOT NULL, reported_at DOUBLE PRECISION NOT NULL);
