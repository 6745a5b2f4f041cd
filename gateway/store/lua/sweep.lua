-- sweep: expired leases back to pending (or dead after too many), jobs past their deadline to dead, families that could
-- not be told at once, due jobs to pending, unique keys and old finished jobs removed.
-- Any gateway may run it at any time; the work of one call is bounded.
-- KEYS: those of endings (_prelude_ending), specs leases idempotency schedule_due usage, then one pending set per class
-- ARGV: limit recoveries_max events_max retention_ms dead_retention_ms told_max class_count, class ids…
-- Returns: recovered poisoned cancelled promoted removed skipped expired told schedules_due(0/1) more(0/1)
local specs_key, leases_key = KEYS[ENDING_KEYS + 1], KEYS[ENDING_KEYS + 2]
local idempotency_key, schedule_due_key = KEYS[ENDING_KEYS + 3], KEYS[ENDING_KEYS + 4]
local usage_key = KEYS[ENDING_KEYS + 5]
local limit, recoveries_max, told_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[6])
local retention_ms, dead_retention_ms = tonumber(ARGV[4]), tonumber(ARGV[5])
local position_of, wake = {}, {}
local recovered, poisoned, cancelled, promoted, removed, skipped, expired = 0, 0, 0, 0, 0, 0, 0
for i = 1, tonumber(ARGV[7]) do
  position_of[ARGV[7 + i]] = ENDING_KEYS + 5 + i
end

-- The record of an indexed job. An id without a record (somebody deleted keys by hand) leaves the index, so that
-- it can't stop every later sweep.
local function load(id, index_key)
  local record = record_of(id)
  if not record then
    redis.call('ZREM', index_key, id)
  end
  return record
end

local function to_pending(record, id)
  record[STATE] = 'pending'
  record[ENQUEUED] = int(now_ms)
  redis.call('ZADD', KEYS[position_of[record[CLASS]]], record[ORDER], id)
  watch_deadline(id, record)
  wake[record[CLASS]] = true
  keep(id, record)
end

local function recover(record, id)
  record[RECOVERIES] = int(tonumber(record[RECOVERIES]) + 1)
  if record[CANCEL] == '1' and record[REFERENCE] == '' then
    finish(id, record, 'cancelled', retention_ms)
    cancelled = cancelled + 1
    return 'cancelled', ''
  end
  if tonumber(record[RECOVERIES]) > recoveries_max then
    finish(id, record, 'dead', dead_retention_ms)
    local reason = cjson.encode({ kind = 'poison_pill', message = 'lease expired ' .. record[RECOVERIES] ..
      ' times without progress' })
    poisoned = poisoned + 1
    return 'dead', explained(id, reason)
  end
  to_pending(record, id)
  recovered = recovered + 1
  return 'recovered', ''
end

local lapsed = redis.call('ZRANGEBYSCORE', leases_key, '-inf', '(' .. int(now_ms), 'LIMIT', 0, limit)
for _, id in ipairs(lapsed) do
  local record = load(id, leases_key)
  if not record then
    skipped = skipped + 1
  elseif position_of[record[CLASS]] then
    redis.call('ZREM', leases_key, id)
    local owner = record[WORKER]
    count_running(record, -1)
    -- Also where it ends: a limit may have held back jobs like it.
    wake[record[CLASS]] = true
    local event, detail = recover(record, id)
    events[#events + 1] = { event, id, record[EPOCH], owner, detail }
  else
    skipped = skipped + 1
  end
end

-- Takes a job out of the place where it waits; false where this call may not touch that place.
local function take_out(record, id)
  if record[STATE] == 'pending' then
    if not position_of[record[CLASS]] then
      return false
    end
    redis.call('ZREM', KEYS[position_of[record[CLASS]]], id)
  end
  redis.call('ZREM', scheduled_key, id)
  redis.call('ZREM', waiting_key, id)
  return true
end

local late = redis.call('ZRANGEBYSCORE', deadlines_key, '-inf', int(now_ms), 'LIMIT', 0, limit)
for _, id in ipairs(late) do
  local record = load(id, deadlines_key)
  if not record then
    skipped = skipped + 1
  elseif record[STATE] == 'running' then
    redis.call('ZREM', deadlines_key, id)
  elseif take_out(record, id) then
    expired = expired + 1
    events[#events + 1] = { 'expired', id, record[EPOCH], '', expire(id, record, dead_retention_ms) }
  else
    skipped = skipped + 1
  end
end

-- Families that were put off earlier, then those of the jobs that ended above.
local families = 0
while families < limit and told < told_max do
  local family = redis.call('LPOP', untold_key)
  if not family then
    break
  end
  families = families + 1
  local put_off = cjson.decode(family)
  tell(put_off[1], put_off[2], put_off[3], retention_ms)
end
tell_families(told_max, retention_ms)

local due = redis.call('ZRANGEBYSCORE', scheduled_key, '-inf', int(now_ms), 'LIMIT', 0, limit)
for _, id in ipairs(due) do
  local record = load(id, scheduled_key)
  if not record then
    skipped = skipped + 1
  elseif position_of[record[CLASS]] then
    redis.call('ZREM', scheduled_key, id)
    to_pending(record, id)
    promoted = promoted + 1
    events[#events + 1] = { 'promoted', id, record[EPOCH], '', '' }
  else
    skipped = skipped + 1
  end
end
write_down()

local free = redis.call('ZRANGEBYSCORE', holds_key, '-inf', int(now_ms), 'LIMIT', 0, limit)
if #free > 0 then
  redis.call('HDEL', unique_key, unpack(free))
  redis.call('ZREM', holds_key, unpack(free))
end

local old = redis.call('ZRANGEBYSCORE', finished_key, '-inf', int(now_ms), 'LIMIT', 0, limit)
for _, id in ipairs(old) do
  local record = load(id, finished_key)
  if record and record[IDEMPOTENCY] ~= '' then
    redis.call('HDEL', idempotency_key, record[IDEMPOTENCY])
  end
end
if #old > 0 then
  redis.call('HDEL', jobs_key, unpack(old))
  redis.call('HDEL', specs_key, unpack(old))
  redis.call('HDEL', results_key, unpack(old))
  redis.call('ZREM', finished_key, unpack(old))
  redis.call('ZREM', dead_key, unpack(old))
  removed = #old
end
write_counts(usage_key)
emit(events_key, ARGV[3], events)
for class_id in pairs(wake) do
  redis.call('PUBLISH', wake_key, class_id)
end
local fires = redis.call('ZRANGEBYSCORE', schedule_due_key, '-inf', int(now_ms), 'LIMIT', 0, 1)
local bounded = math.max(#lapsed, #late, families, #due, #free, #old) == limit
local more = (bounded or told >= told_max) and '1' or '0'
return {
  int(recovered), int(poisoned), int(cancelled), int(promoted), int(removed), int(skipped), int(expired), int(told),
  int(#fires), more
}
