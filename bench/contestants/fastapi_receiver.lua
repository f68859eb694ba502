-- The steps of fastapi_receiver.py that have to be atomic. KEYS: the call's key and the update's; ARGV: the step first.
local call, step = redis.call, ARGV[1]

-- now, due, message, the update's name, handlers...: 1 where the update is new.
if step == 'record' then
  if call('HSETNX', KEYS[2], 'message', ARGV[4]) == 0 then return 0 end
  call('HSET', KEYS[2], 'received_at', ARGV[2])
  call('ZADD', 'fastapi:updates', ARGV[2], ARGV[5])
  for i = 6, #ARGV do call('ZADD', 'fastapi:pending', ARGV[3], ARGV[5] .. '\t' .. ARGV[i]) end
  return 1
end

-- status, timestamp, error, type, line, customer, id: the first start and the first end stand, in whatever order.
if step == 'track' then
  local status, id = ARGV[2], ARGV[8]
  local field = status == 'in-progress' and 'started_at' or (status:sub(1, 5) == 'ended' and 'ended_at')
  if not field or call('HSETNX', KEYS[1], field, ARGV[3]) == 0 then return end
  call('HSET', KEYS[1], 'type', ARGV[5], 'line', ARGV[6], 'customer', ARGV[7])
  if field == 'ended_at' then
    call('HSET', KEYS[1], 'status', status, 'error', ARGV[4])
    call('SREM', 'active_calls', id)
  elseif call('HEXISTS', KEYS[1], 'ended_at') == 0 then
    call('HSET', KEYS[1], 'status', status)
    call('SADD', 'active_calls', id)
  end
  call('ZADD', 'fastapi:calls', 'NX', ARGV[9], id)
end

-- now, lease: the row that has been due longest, and its update.
if step == 'take' then
  local row = call('ZRANGE', 'fastapi:pending', '-inf', ARGV[2], 'BYSCORE', 'LIMIT', 0, 1)[1]
  if not row then return false end
  call('ZADD', 'fastapi:pending', ARGV[3], row)
  return {row, call('HMGET', 'fastapi:update:' .. row:match('^(.*)\t'), 'message', 'received_at')}
end
