-- From version 1, which was SQLite only: its tables make way for those of {schema}, and what they have is copied.

ALTER TABLE updates RENAME TO updates_1;
ALTER TABLE calls RENAME TO calls_1;
ALTER TABLE refusals RENAME TO refusals_1;
DROP INDEX updates_received;
DROP INDEX calls_active;

{schema}

INSERT INTO updates SELECT id, call_id, status, received_at, kept_at, message, alike FROM updates_1;
INSERT INTO jobs (update_id, handler, state, due_at, attempts, first_tried_at, error)
  SELECT updates.id, handler, CASE WHEN due IS NULL THEN 'failed' WHEN leased THEN 'leased' ELSE 'pending' END,
    due, attempts, first_tried, error
  FROM rows JOIN updates USING (call_id, status);
INSERT INTO calls (id, status, type, line, line_name, customer, received_at, started_at, start_received_at, ended_at,
    end_received_at, error, end_reason, checked_at, unknown, hour, updated_at)
  SELECT id, status, type, line, line_name, customer, received_at, started_at, start_received_at, ended_at,
    end_received_at, substr(error, 1, 300), end_reason, asked_at, unknown, CAST(received_at / 3600 AS INTEGER) * 3600,
    max(received_at, coalesce(start_received_at, 0), coalesce(end_received_at, 0))
  FROM calls_1;
INSERT INTO refusals SELECT * FROM refusals_1;

DROP TABLE figures;
DROP TABLE reports;
DROP TABLE claims;
DROP TABLE rows;
DROP TABLE updates_1;
DROP TABLE calls_1;
DROP TABLE refusals_1;
