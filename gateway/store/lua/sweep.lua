-- sweep: expired leases back to pending (or dead after too many), due jobs to pending, old finished jobs removed.
-- Any gateway may run it at any time; the work of one call is bounded.
-- KEYS: jobs specs results leases scheduled finished dead idempotency events wake, then one pending set per class
-- ARGV: limit recoveries_max events_max retention_ms dead_retention_ms class_count, class ids…
-- Returns: recovered poisoned cancelled promoted removed skipped more(0/1)
local jobs_key, specs_key, results_key, leases_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local scheduled_key, finished_key, dead_key, idempotency_key = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local events_key, wake_key = KEYS[9], KEYS[10]
local limit, recoveries_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local position_of, events, wake = {}, {}, {}
local recovered, poisoned, cancelled, promoted, removed, skipped = 0, 0, 0, 0, 0, 0
for i = 1, tonumber(ARGV[6]) do
  position_of[ARGV[6 + i]] = 10 + i
end

-- The record of an indexed job. An id without a record (somebody deleted keys by hand) leaves the index, so that
-- it can't stop every later sweep.
local function load(id, index_key)
  local raw = redis.call('HGET', jobs_key, id)
  if not raw then
    redis.call('ZREM', index_key, id)
    return nil
  end
  return cjson.decode(raw)
end

local function to_pending(record, id)
  record[STATE] = 'pending'
  record[ENQUEUED] = int(now_ms)
  redis.call('ZADD', KEYS[position_of[record[CLASS]]], record[ORDER], id)
  wake[record[CLASS]] = true
end

local function finish(record, id, state, keep_ms)
  record[STATE] = state
  record[ENDED] = int(now_ms)
  redis.call('ZADD', finished_key, int(now_ms + tonumber(keep_ms)), id)
end

local function recover(record, id)
  record[RECOVERIES] = int(tonumber(record[RECOVERIES]) + 1)
  if record[CANCEL] == '1' and record[REFERENCE] == '' then
    finish(record, id, 'cancelled', ARGV[4])
    cancelled = cancelled + 1
    return 'cancelled', ''
  end
  if tonumber(record[RECOVERIES]) > recoveries_max then
    finish(record, id, 'dead', ARGV[5])
    redis.call('ZADD', dead_key, int(now_ms), id)
    local reason = cjson.encode({ kind = 'poison_pill', message = 'lease expired ' .. record[RECOVERIES] ..
      ' times without progress' })
    redis.call('HSET', results_key, id, reason)
    poisoned = poisoned + 1
    return 'dead', reason
  end
  to_pending(record, id)
  recovered = recovered + 1
  return 'recovered', ''
end

local expired = redis.call('ZRANGEBYSCORE', leases_key, '-inf', '(' .. int(now_ms), 'LIMIT', 0, limit)
for _, id in ipairs(expired) do
  local record = load(id, leases_key)
  if not record then
    skipped = skipped + 1
  elseif position_of[record[CLASS]] then
    redis.call('ZREM', leases_key, id)
    local owner = record[WORKER]
    local event, detail = recover(record, id)
    redis.call('HSET', jobs_key, id, cjson.encode(record))
    events[#events + 1] = { event, id, record[EPOCH], owner, detail }
  else
    skipped = skipped + 1
  end
end

local due = redis.call('ZRANGEBYSCORE', scheduled_key, '-inf', int(now_ms), 'LIMIT', 0, limit)
for _, id in ipairs(due) do
  local record = load(id, scheduled_key)
  if not record then
    skipped = skipped + 1
  elseif position_of[record[CLASS]] then
    redis.call('ZREM', scheduled_key, id)
    to_pending(record, id)
    redis.call('HSET', jobs_key, id, cjson.encode(record))
    promoted = promoted + 1
    events[#events + 1] = { 'promoted', id, record[EPOCH], '', '' }
  else
    skipped = skipped + 1
  end
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
emit(events_key, ARGV[3], events)
for class_id in pairs(wake) do
  redis.call('PUBLISH', wake_key, class_id)
end
local more = (#expired == limit or #due == limit or #old == limit) and '1' or '0'
return { int(recovered), int(poisoned), int(cancelled), int(promoted), int(removed), int(skipped), more }
