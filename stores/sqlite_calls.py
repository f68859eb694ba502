"""The statements that bring a call up to date: the same call comes out in whatever order updates come."""

CALL = (
    "id, status, type, line, line_name, customer, received_at,"
    " started_at, start_received_at, ended_at, end_received_at, error, end_reason"
)
_INSERT = f"INSERT INTO calls ({CALL}) VALUES ({', '.join('?' * 13)}) ON CONFLICT DO UPDATE SET"
START_CALL = f"""{_INSERT} status = iif(end_received_at IS NULL, excluded.status, status),
  received_at = min(received_at, excluded.received_at),
  started_at = excluded.started_at, start_received_at = excluded.start_received_at WHERE start_received_at IS NULL"""
END_CALL = f"""{_INSERT} status = excluded.status, received_at = min(received_at, excluded.received_at),
  ended_at = excluded.ended_at, end_received_at = excluded.end_received_at, error = excluded.error,
  end_reason = excluded.end_reason WHERE end_received_at IS NULL OR end_received_at > excluded.end_received_at"""
MENTION_CALL = f"{_INSERT} received_at = excluded.received_at WHERE received_at > excluded.received_at"
ACTIVE = """start_received_at IS NOT NULL AND end_received_at IS NULL
  AND start_received_at > ? AND start_received_at <= ?"""
