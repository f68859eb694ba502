-- Version 3. Times are Unix seconds; {id} is the database's own numbering, which orders what was kept;
-- {bytewise} sorts ids by their bytes, or those that begin the same would not be next to each other in every language.

CREATE TABLE IF NOT EXISTS updates (
  id {id},
  call_id TEXT {bytewise} NOT NULL,
  status TEXT NOT NULL,
  received_at DOUBLE PRECISION NOT NULL,
  kept_at DOUBLE PRECISION NOT NULL,
  message TEXT NOT NULL, -- JSON, as the provider sent it, less what is not kept
  error_group TEXT, -- the same for errors of one kind
  handlers TEXT, -- a JSON list of the handlers it was given to; null where an import does not say
  times INTEGER NOT NULL, -- how often the webhook received it
  last_received_at DOUBLE PRECISION NOT NULL,
  UNIQUE (call_id, status)
);
CREATE INDEX IF NOT EXISTS updates_received ON updates (received_at, handlers); -- the second to count deliveries without the rows

-- One handler's work on one update. A job that is done by the request that brought the update is removed.
CREATE TABLE IF NOT EXISTS jobs (
  update_id BIGINT NOT NULL REFERENCES updates (id) ON DELETE CASCADE,
  handler TEXT NOT NULL,
  state TEXT NOT NULL, -- pending, leased, done or failed
  due_at DOUBLE PRECISION, -- when a pending one is next tried and a lease ends; null once it is done or failed
  attempts INTEGER NOT NULL DEFAULT 0,
  first_tried_at DOUBLE PRECISION,
  error TEXT, -- of the last attempt that failed
  done_at DOUBLE PRECISION, -- or failed
  PRIMARY KEY (update_id, handler)
);
CREATE INDEX IF NOT EXISTS jobs_open ON jobs (handler, due_at, update_id) WHERE state <> 'done';

-- Each attempt that failed: when, how many seconds it took, and why.
CREATE TABLE IF NOT EXISTS attempts (
  update_id BIGINT NOT NULL REFERENCES updates (id) ON DELETE CASCADE,
  handler TEXT NOT NULL,
  at DOUBLE PRECISION NOT NULL,
  seconds DOUBLE PRECISION NOT NULL,
  error TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS attempts_update ON attempts (update_id);

-- What the updates of a call tell of it together, in whatever order they came.
CREATE TABLE IF NOT EXISTS calls (
  id TEXT {bytewise} PRIMARY KEY,
  status TEXT NOT NULL,
  type TEXT,
  line TEXT,
  line_name TEXT,
  customer TEXT,
  digits TEXT, -- those of the customer's number; of a SIP URI those of its user
  received_at DOUBLE PRECISION NOT NULL, -- its first update
  started_at DOUBLE PRECISION,
  start_received_at DOUBLE PRECISION,
  ended_at DOUBLE PRECISION,
  end_received_at DOUBLE PRECISION,
  ended_at_guessed INTEGER NOT NULL DEFAULT 0, -- 1: ended_at is when that was received, as its own time could not be read
  ended_with_error INTEGER NOT NULL DEFAULT 0, -- 1: so it did
  -- What updates said that end a call with an error, and what others did: whichever stands, nothing is forgotten.
  error_text TEXT,
  error_reason TEXT,
  normal_reason TEXT,
  error TEXT GENERATED ALWAYS AS (CASE WHEN ended_with_error = 1 THEN error_text END) STORED,
  end_reason TEXT GENERATED ALWAYS AS (CASE WHEN ended_with_error = 1 THEN error_reason ELSE normal_reason END) STORED,
  checked_at DOUBLE PRECISION, -- when the provider was last asked about it
  unknown INTEGER NOT NULL DEFAULT 0, -- 1: the provider knew no such call
  seconds DOUBLE PRECISION GENERATED ALWAYS AS (CASE WHEN ended_at >= started_at THEN ended_at - started_at END) STORED,
  updated_at DOUBLE PRECISION NOT NULL -- its latest update
);
CREATE INDEX IF NOT EXISTS calls_active ON calls (start_received_at) WHERE start_received_at IS NOT NULL AND end_received_at IS NULL;
CREATE INDEX IF NOT EXISTS calls_received ON calls (received_at);
CREATE INDEX IF NOT EXISTS calls_ending ON calls (substr(digits, length(digits) - 3), received_at);

-- Until when one of all processes has something to itself.
CREATE TABLE IF NOT EXISTS locks (
  name TEXT PRIMARY KEY,
  until DOUBLE PRECISION NOT NULL
);

-- Requests that were refused, by the hour and reason.
CREATE TABLE IF NOT EXISTS refusals (
  hour BIGINT NOT NULL,
  reason TEXT NOT NULL,
  times BIGINT NOT NULL,
  latest DOUBLE PRECISION NOT NULL,
  PRIMARY KEY (hour, reason)
);
