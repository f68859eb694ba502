-- The verbs of stores/redis.py, which documents the keys and sets the flags. ARGV: the verb, for how many seconds keys
-- are kept, and the verb's arguments as a JSON object. Times come, are kept and go as the texts they are in Python, for
-- Lua would round them; they are compared as numbers. No id, status or handler has a tab in it.
local call, seconds, a = redis.call, ARGV[2], cjson.decode(ARGV[3])
local PREFIX, ACTIVE = 'receiver:', 'active_calls'
local CALLS, RECENT, CUSTOMERS, NUMBERS, ENDINGS = PREFIX .. 'calls', PREFIX .. 'recent', PREFIX .. 'customers',
  PREFIX .. 'numbers', PREFIX .. 'endings'
local KEPT, SETTLED, POSITION, BARE = PREFIX .. 'kept', PREFIX .. 'settled', PREFIX .. 'position', PREFIX .. 'bare'
local FIGURES, HOURS, HANDLERS = PREFIX .. 'figures', PREFIX .. 'hours', PREFIX .. 'handlers'
local CLAIMS, REPORTS, REFUSALS = PREFIX .. 'claims', PREFIX .. 'reports', PREFIX .. 'refusals'
local SHARED = {ACTIVE, CALLS, RECENT, CUSTOMERS, NUMBERS, ENDINGS, KEPT, SETTLED, POSITION, BARE, FIGURES, HOURS,
  HANDLERS, CLAIMS, REPORTS, REFUSALS}
local UPDATES, DUE, WAITING = PREFIX .. 'updates:', PREFIX .. 'due:', PREFIX .. 'waiting:'
local FAILED, ERRORS = PREFIX .. 'failed:', PREFIX .. 'errors:'

local verbs = {}

-- Rows.

local function handlers()
  return call('SMEMBERS', HANDLERS)
end

local function row_of(id, status, handler)
  local text = call('HGET', UPDATES .. id, status .. '\t' .. handler)
  return text and cjson.decode(text)
end

-- Returns whether there was one in the indexes.
local function clear_row(id, status, handler)
  local key = id .. '\t' .. status
  call('ZREM', ERRORS .. handler, key)
  if call('ZREM', DUE .. handler, key) == 1 then return call('ZREM', WAITING .. handler, key) end
  return call('SREM', FAILED .. handler, key)
end

-- `due` is nil for a row that has failed.
local function index_row(id, status, handler, due, row, received_at)
  local key = id .. '\t' .. status
  if due then
    call('ZADD', DUE .. handler, due, key)
    call('ZADD', WAITING .. handler, received_at, key)
  else
    call('SADD', FAILED .. handler, key)
  end
  if row.error then call('ZADD', ERRORS .. handler, due or '-inf', key) end
end

local function write_row(id, status, handler, due, row)
  local received_at = cmsgpack.unpack(call('HGET', UPDATES .. id, status))[1]
  clear_row(id, status, handler)
  index_row(id, status, handler, due, row, received_at)
  call('HSET', UPDATES .. id, status .. '\t' .. handler, cjson.encode(row))
end

-- Whether the call, or its one update with `status`, has a row pending.
local function is_pending(id, status)
  for _, field in ipairs(call('HKEYS', UPDATES .. id)) do
    local of, handler = field:match('^(.-)\t(.*)$')
    if of and (not status or of == status) and call('ZSCORE', DUE .. handler, id .. '\t' .. of) then return true end
  end
  return false
end

local function member_of(id, status, position, customer)
  return position .. '\t' .. id .. '\t' .. status .. '\t' .. (customer or '')
end

-- An update with a row pending is not pruned, nor does it, or another of its call, expire.
local function age_update(id, status)
  local text = call('HGET', UPDATES .. id, status)
  if not text then return end
  local received_at, _, position, customer = unpack(cmsgpack.unpack(text))
  local member = member_of(id, status, position, customer)
  if is_pending(id, status) then call('ZREM', SETTLED, member) else call('ZADD', SETTLED, received_at, member) end
  if is_pending(id) then call('PERSIST', UPDATES .. id) else call('EXPIRE', UPDATES .. id, seconds) end
end

-- While anything is pending, nothing that is shared expires.
local function age_shared()
  local keys, due = {unpack(SHARED)}, {}
  for index, handler in ipairs(handlers()) do
    due[index], keys[#keys + 1], keys[#keys + 2] = DUE .. handler, FAILED .. handler, ERRORS .. handler
  end
  local busy = #due > 0 and call('EXISTS', unpack(due)) > 0
  if busy and call('TTL', POSITION) == -1 then return end
  for _, key in ipairs(keys) do
    if busy then call('PERSIST', key) else call('EXPIRE', key, seconds) end
  end
end

-- Calls and their figures.

local function state_of(id)
  local text = call('HGET', CALLS, id)
  return text and cjson.decode(text)
end

-- A text that starts no other such text, so that a range of an index holds one number only.
local function tagged(number)
  return #number .. ':' .. number
end

local function customer_member(id, state)
  return tagged(state.customer) .. ('%018.6f'):format(state.received_at) .. '\t' .. id
end

-- The id's beginnings up to where six or more digits end, backwards: a number in it is found by its last digits.
local function endings(id)
  local found = {}
  for stop in id:gmatch('%d%d%d%d%d%d+()') do found[#found + 1] = id:sub(1, stop - 1):reverse() .. '\t' .. id end
  return found
end

local function count(state, by)
  local hour = math.floor(state.received_at / 3600) * 3600
  local field = ('%d'):format(hour) .. '\t' .. state.status .. '\t' .. (state.error or '')
  local calls, timed, total, latest = (call('HGET', FIGURES, field) or '0 0 0 0'):match('(%S+) (%S+) (%S+) (%S+)')
  local lasted = (state.started_at and state.ended_at) and state.ended_at - state.started_at or -1
  calls, timed, total = calls + by, timed + (lasted >= 0 and by or 0), total + (lasted >= 0 and by * lasted or 0)
  if calls <= 0 then
    call('HDEL', FIGURES, field)
    call('ZREM', HOURS, field)
    return
  end
  latest = math.max(latest, state.received_at, state.end_received_at or 0)
  call('HSET', FIGURES, field, ('%d %d %.17g %.17g'):format(calls, timed, total, latest))
  call('ZADD', HOURS, hour, field)
end

local function remove_call(id)
  local state = state_of(id)
  call('ZREM', BARE, id)
  call('ZREM', RECENT, id)
  call('SREM', ACTIVE, id)
  if not state then return 0 end
  count(state, -1)
  if state.customer then call('ZREM', CUSTOMERS, customer_member(id, state)) end
  if call('EXISTS', UPDATES .. id) == 0 then
    for _, member in ipairs(endings(id)) do call('ZREM', ENDINGS, member) end
  end
  return call('HDEL', CALLS, id)
end

local function write_call(id, state)
  remove_call(id)
  count(state, 1)
  call('HSET', CALLS, id, cjson.encode(state))
  call('ZADD', RECENT, state.received_at, id)
  if state.customer then call('ZADD', CUSTOMERS, 0, customer_member(id, state)) end
  if state.start_received_at and not state.end_received_at then call('SADD', ACTIVE, id) end
  for _, member in ipairs(endings(id)) do call('ZADD', ENDINGS, 0, member) end
  if call('EXISTS', UPDATES .. id) == 0 then call('ZADD', BARE, state.received_at, id) end
end

local function earlier(one, other)
  return tonumber(one) < tonumber(other)
end

-- Bring a call up to date with what an update tells of it.
local function track(id, new)
  local state = state_of(id)
  if not state then
    write_call(id, new)
  elseif new.start_received_at then
    if state.start_received_at then return end
    if not state.end_received_at then state.status = new.status end
    state.started_at, state.start_received_at = new.started_at, new.start_received_at
  elseif new.end_received_at then
    if state.end_received_at and not earlier(new.end_received_at, state.end_received_at) then return end
    state.status, state.error, state.end_reason = new.status, new.error, new.end_reason
    state.ended_at, state.end_received_at = new.ended_at, new.end_received_at
  elseif not earlier(new.received_at, state.received_at) then
    return
  end
  if state then
    if earlier(new.received_at, state.received_at) then state.received_at = new.received_at end
    write_call(id, state)
  end
end

function verbs.track()
  track(a.id, a.state)
  age_shared()
end

-- Updates. What is kept of one: received_at, kept_at, position, customer or false, message, what is alike or false.

local function update_of(id, status)
  local fields, names = {status}, handlers()
  for index, handler in ipairs(names) do fields[index + 1] = status .. '\t' .. handler end
  local found = call('HMGET', UPDATES .. id, unpack(fields))
  if not found[1] then return false end
  local received_at, kept_at, position, _, message = unpack(cmsgpack.unpack(found[1]))
  local rows = {}
  for index, handler in ipairs(names) do
    local due = call('ZSCORE', DUE .. handler, id .. '\t' .. status)
    if found[index + 1] then rows[#rows + 1] = {handler, due, found[index + 1]} end
  end
  return {position, id, status, received_at, kept_at, message, rows}
end

-- Remove one update of the indexes, and the update itself unless it expired or was kept anew. Returns its rows.
local function remove_update(member)
  local position, id, status, customer = member:match('^(.-)\t(.-)\t(.-)\t(.*)$')
  local kept, rows = call('HGET', UPDATES .. id, status), 0
  call('ZREM', KEPT, member)
  call('ZREM', SETTLED, member)
  if kept and cmsgpack.unpack(kept)[3] ~= position then return 0 end
  for _, handler in ipairs(handlers()) do
    rows = rows + clear_row(id, status, handler)
    call('HDEL', UPDATES .. id, status .. '\t' .. handler)
  end
  call('HDEL', UPDATES .. id, status)
  call('ZREM', NUMBERS, tagged(customer) .. id .. '\t' .. status)
  if call('EXISTS', UPDATES .. id) == 0 then
    local state = state_of(id)
    if state then
      call('ZADD', BARE, state.received_at, id)
    else
      for _, ending in ipairs(endings(id)) do call('ZREM', ENDINGS, ending) end
    end
  end
  return rows
end

function verbs.record()
  local id, status, updates = a.id, a.status, UPDATES .. a.id
  if call('HEXISTS', updates, status) == 1 then return 0 end
  local position = a.kept .. ('%016d'):format(call('INCR', POSITION))
  local fields = {status, cmsgpack.pack({a.received_at, a.kept_at, position, a.customer or false,
    a.message, a.alike or false})}
  for index, handler in ipairs(a.handlers) do
    local row = {leased = a.leased and index <= a.pending, attempts = 0}
    fields[#fields + 1], fields[#fields + 2] = status .. '\t' .. handler, cjson.encode(row)
  end
  call('HSET', updates, unpack(fields))
  call('ZADD', KEPT, 0, member_of(id, status, position, a.customer))
  call('ZREM', BARE, id)
  if a.customer then call('ZADD', NUMBERS, 0, tagged(a.customer) .. id .. '\t' .. status) end
  for _, ending in ipairs(endings(id)) do call('ZADD', ENDINGS, 0, ending) end
  for index, handler in ipairs(a.handlers) do
    index_row(id, status, handler, index <= a.pending and a.due or nil, {}, a.received_at)
  end
  if #a.handlers > 0 then call('SADD', HANDLERS, unpack(a.handlers)) end
  track(id, a.state)
  age_update(id, status)
  age_shared()
  return 1
end

function verbs.settle()
  for _, handler in ipairs(a.done) do
    clear_row(a.id, a.status, handler)
    call('HDEL', UPDATES .. a.id, a.status .. '\t' .. handler)
  end
  for _, row in ipairs(a.failures) do
    local handler, due = row.handler, row.due
    local lease = call('ZSCORE', DUE .. handler, a.id .. '\t' .. a.status)
    if lease and tonumber(lease) == tonumber(a.lease) and row_of(a.id, a.status, handler) then
      row.handler, row.due, row.leased = nil, nil, false
      write_row(a.id, a.status, handler, due, row)
    end
  end
  age_update(a.id, a.status)
  age_shared()
end

function verbs.take()
  while true do
    local key = call('ZRANGE', DUE .. a.handler, '-inf', a.now, 'BYSCORE', 'LIMIT', 0, 1)[1]
    if not key then return false end
    local id, status = key:match('^(.-)\t(.*)$')
    local row = row_of(id, status, a.handler)
    if row then
      row.leased = true
      write_row(id, status, a.handler, a.lease, row)
      return {update_of(id, status), {a.handler, a.lease, cjson.encode(row)}}
    end
    clear_row(id, status, a.handler) -- somebody deleted or evicted the update
  end
end

-- Does no more than it must: there may be tens of thousands.
local function hurry_row(handler, id, status)
  local row, key = row_of(id, status, handler), id .. '\t' .. status
  if not row or row.leased then return 0 end
  if call('ZADD', DUE .. handler, 'XX', 'CH', a.now, key) == 1 or call('ZSCORE', DUE .. handler, key) then
    if row.error then call('ZADD', ERRORS .. handler, a.now, key) end
    return 1
  end
  if not a.failed then return 0 end
  row.attempts, row.first_tried = 0, nil
  local received_at, _, position, customer = unpack(cmsgpack.unpack(call('HGET', UPDATES .. id, status)))
  call('SREM', FAILED .. handler, key)
  call('ZREM', SETTLED, member_of(id, status, position, customer))
  index_row(id, status, handler, a.now, row, received_at)
  call('HSET', UPDATES .. id, status .. '\t' .. handler, cjson.encode(row))
  call('PERSIST', UPDATES .. id)
  return 1
end

function verbs.hurry()
  local hurried = 0
  if a.call_id then
    for _, field in ipairs(call('HKEYS', UPDATES .. a.call_id)) do
      local status, handler = field:match('^(.-)\t(.*)$')
      if status and handler == (a.handler or handler) then hurried = hurried + hurry_row(handler, a.call_id, status) end
    end
  else
    for _, handler in ipairs(a.handler and {a.handler} or handlers()) do
      local keys = call('ZRANGE', DUE .. handler, 0, -1)
      for _, key in ipairs(a.failed and call('SMEMBERS', FAILED .. handler) or {}) do keys[#keys + 1] = key end
      for _, key in ipairs(keys) do hurried = hurried + hurry_row(handler, key:match('^(.-)\t(.*)$')) end
    end
  end
  age_shared()
  return hurried
end

local function states(ids)
  local found = {}
  for _, id in ipairs(ids) do
    local state = call('HGET', CALLS, id)
    if state then found[#found + 1] = {id, state} end
  end
  return found
end

function verbs.active()
  return states(call('SMEMBERS', ACTIVE))
end

function verbs.recent()
  if not a.search then return states(call('ZRANGE', RECENT, 0, a.limit - 1, 'REV')) end
  local prefix, ids = tagged(a.search), {}
  local range = {'(' .. prefix .. '\255', '[' .. prefix, 'BYLEX', 'REV', 'LIMIT', 0, a.limit}
  for index, member in ipairs(call('ZRANGE', CUSTOMERS, unpack(range))) do
    ids[index] = member:sub(#prefix + 1):match('\t(.*)$')
  end
  ids[#ids + 1] = a.search
  return states(ids)
end

function verbs.call()
  local updates = {}
  for _, field in ipairs(call('HKEYS', UPDATES .. a.id)) do
    if not field:find('\t', 1, true) then updates[#updates + 1] = update_of(a.id, field) end
  end
  return {call('HGET', CALLS, a.id), updates}
end

function verbs.figures()
  local found = call('ZRANGE', HOURS, a.since, '+inf', 'BYSCORE')
  for index, field in ipairs(found) do found[index] = {field, call('HGET', FIGURES, field)} end
  return found
end

-- A page of what is kept after a member of the index: the member to go on from unless it is the last, and the updates.
function verbs.updates()
  local members, found = call('ZRANGE', KEPT, a.after, '+', 'BYLEX', 'LIMIT', 0, a.limit), {}
  for _, member in ipairs(members) do
    local position, id, status = member:match('^(.-)\t(.-)\t(.-)\t')
    local update = update_of(id, status)
    if update and update[1] == position then found[#found + 1] = update end
  end
  return {members[a.limit] or false, found}
end

function verbs.backlog()
  local found = {}
  for index, handler in ipairs(handlers()) do
    local key = call('ZRANGE', ERRORS .. handler, 0, 0, 'REV')[1] or '\t'
    local id, status = key:match('^(.-)\t(.*)$')
    local oldest = call('ZRANGE', WAITING .. handler, 0, 0, 'WITHSCORES')[2] or false
    local row, failed = row_of(id, status, handler), call('SCARD', FAILED .. handler)
    found[index] = {handler, call('ZCARD', DUE .. handler), failed, oldest, row and row.error or false}
  end
  return found
end

-- A field is an hour and a reason, its value how many times and when last.
function verbs.count_refusals()
  for _, each in ipairs(a.refused) do
    local field = each.hour .. '\t' .. each.reason
    local times, latest = (call('HGET', REFUSALS, field) or '0 0'):match('(%S+) (%S+)')
    latest = math.max(latest, each.latest)
    call('HSET', REFUSALS, field, ('%d %.17g'):format(times + each.times, latest))
  end
  age_shared()
end

function verbs.refusals()
  return call('HGETALL', REFUSALS)
end

function verbs.note_asked()
  local state = state_of(a.id)
  if not state then return end
  state.asked_at, state.unknown = a.now, a.unknown
  call('HSET', CALLS, a.id, cjson.encode(state))
end

function verbs.claim()
  local taken = call('HGET', CLAIMS, a.chore)
  if taken and tonumber(taken) > tonumber(a.now) then return 0 end
  call('HSET', CLAIMS, a.chore, ('%.17g'):format(a.now + a.seconds))
  return 1
end

-- How many updates that are alike `handler` has rows for after position `upto`, and the last of them.
local function alike_after(alike, handler, upto)
  local count, last = 0, upto
  local keys = call('ZRANGE', DUE .. handler, 0, -1)
  for _, key in ipairs(call('SMEMBERS', FAILED .. handler)) do keys[#keys + 1] = key end
  for _, key in ipairs(keys) do
    local id, status = key:match('^(.-)\t(.*)$')
    local text = call('HGET', UPDATES .. id, status)
    local update = text and cmsgpack.unpack(text)
    if update and update[6] == alike and update[3] > upto then
      count = count + 1
      if update[3] > last then last = update[3] end
    end
  end
  return count, last
end

function verbs.claim_report()
  local text = call('HGET', UPDATES .. a.id, a.status)
  if not text then return false end
  local _, _, position, _, _, alike = unpack(cmsgpack.unpack(text))
  local report = cjson.decode(call('HGET', REPORTS, alike) or '{"upto": "", "reported_at": 0, "leased_until": 0}')
  if position <= report.upto then return false end
  local ready_at = math.max(report.reported_at + a.interval, report.leased_until)
  if tonumber(a.now) < ready_at then return {('%.17g'):format(ready_at - a.now), 0, ''} end
  local count, last = alike_after(alike, a.handler, report.upto)
  report.leased_until = a.now + a.lease
  call('HSET', REPORTS, alike, cjson.encode(report))
  return {'0', math.max(count - 1, 0), last > position and last or position}
end

function verbs.settle_report()
  call('HSET', REPORTS, a.alike, cjson.encode({upto = a.upto, reported_at = tonumber(a.now), leased_until = 0}))
end

function verbs.check()
  call('SET', PREFIX .. 'check', 'written', 'EX', seconds)
  local indexes, last = {SETTLED}, false
  for _, handler in ipairs(handlers()) do indexes[#indexes + 1] = WAITING .. handler end
  for _, index in ipairs(indexes) do
    local score = call('ZRANGE', index, 0, 0, 'REV', 'WITHSCORES')[2]
    if score and (not last or tonumber(score) > tonumber(last)) then last = score end
  end
  return last
end

local function range(index, prefix)
  return call('ZRANGE', index, '[' .. prefix, '(' .. prefix .. '\255', 'BYLEX')
end

function verbs.forget()
  local ids, prefix = {}, tagged(a.number)
  for _, member in ipairs(range(CUSTOMERS, prefix)) do ids[member:sub(#prefix + 1):match('\t(.*)$')] = true end
  for _, member in ipairs(range(NUMBERS, prefix)) do ids[member:sub(#prefix + 1):match('^(.*)\t')] = true end
  if a.number:find('%d%d%d%d%d%d$') then
    for _, member in ipairs(range(ENDINGS, a.number:reverse())) do ids[member:match('\t(.*)$')] = true end
  end
  local calls, updates, rows = 0, 0, 0
  for id in pairs(ids) do
    for _, status in ipairs(call('HKEYS', UPDATES .. id)) do
      if not status:find('\t', 1, true) then
        local _, _, position, customer = unpack(cmsgpack.unpack(call('HGET', UPDATES .. id, status)))
        rows = rows + remove_update(member_of(id, status, position, customer))
        updates = updates + 1
      end
    end
    calls = calls + remove_call(id)
  end
  age_shared()
  return {calls, updates, rows}
end

function verbs.prune()
  local old = call('ZRANGE', SETTLED, '-inf', '(' .. a.before, 'BYSCORE', 'LIMIT', 0, a.limit)
  for _, member in ipairs(old) do remove_update(member) end
  local bare = call('ZRANGE', BARE, '-inf', '(' .. a.before, 'BYSCORE', 'LIMIT', 0, a.limit)
  for _, id in ipairs(bare) do remove_call(id) end
  for _, handler in ipairs(handlers()) do
    if call('EXISTS', DUE .. handler, FAILED .. handler) == 0 then call('SREM', HANDLERS, handler) end
  end
  for _, field in ipairs(call('HKEYS', REFUSALS)) do
    if tonumber(field:match('^(%d+)\t')) <= a.before - 3600 then call('HDEL', REFUSALS, field) end
  end
  local reports = call('HGETALL', REPORTS)
  for index = 1, #reports, 2 do
    local report = cjson.decode(reports[index + 1])
    if math.max(report.reported_at, report.leased_until) < tonumber(a.before) then
      call('HDEL', REPORTS, reports[index])
    end
  end
  age_shared()
  return {#old, #bare}
end

return verbs[ARGV[1]]()
