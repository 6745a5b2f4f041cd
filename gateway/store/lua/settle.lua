-- settle: end leases: completed, failed (retry or dead), snoozed, released, cancelled. Terminal states absorb.
-- KEYS: jobs results leases scheduled finished dead events wake, then one pending set per class named
-- ARGV: events_max retention_ms dead_retention_ms yields_max count, then per settlement (stride 9):
--       id epoch kind body detail delay_ms avoid_ms final class_position
-- Returns per settlement: verdict (accepted | duplicate | stale), state of the job afterwards
local jobs_key, results_key, leases_key, scheduled_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local finished_key, dead_key, events_key, wake_key = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local retention_ms, dead_retention_ms, yields_max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local count = tonumber(ARGV[5])
local ids, reply, events, changes, results, ended, finished = {}, {}, {}, {}, {}, {}, {}
for i = 1, count do
  ids[i] = ARGV[6 + (i - 1) * 9]
end
local raws = redis.call('HMGET', jobs_key, unpack(ids))
local latest = {}

local function finish(record, id, state, keep_ms)
  record[STATE] = state
  record[ENDED] = int(now_ms)
  finished[#finished + 1] = int(now_ms + keep_ms)
  finished[#finished + 1] = id
end

local function bury(record, id)
  finish(record, id, 'dead', dead_retention_ms)
  redis.call('ZADD', dead_key, int(now_ms), id)
  return 'dead'
end

local function give_back(record, id, at, event)
  local delay_ms, avoid_ms = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  if avoid_ms > 0 then
    record[AVOID_WORKER] = record[WORKER]
    record[AVOID_UNTIL] = int(now_ms + delay_ms + avoid_ms)
  end
  if delay_ms > 0 then
    record[STATE] = 'scheduled'
    redis.call('ZADD', scheduled_key, int(now_ms + delay_ms), id)
  else
    record[STATE] = 'pending'
    record[ENQUEUED] = int(now_ms)
    redis.call('ZADD', KEYS[8 + tonumber(ARGV[at + 8])], record[ORDER], id)
    redis.call('PUBLISH', wake_key, record[CLASS])
  end
  return delay_ms > 0 and event .. '_later' or event
end

-- Applies one settlement to its record and names the event.
local function apply(record, id, at)
  local kind = ARGV[at + 2]
  if kind == 'completed' then
    finish(record, id, 'completed', retention_ms)
    return 'completed'
  end
  if kind == 'cancelled' or record[CANCEL] == '1' then
    finish(record, id, 'cancelled', retention_ms)
    return 'cancelled'
  end
  if kind == 'failed' then
    record[ATTEMPTS] = int(tonumber(record[ATTEMPTS]) + 1)
    if ARGV[at + 7] == '1' or tonumber(record[ATTEMPTS]) >= tonumber(record[MAX_ATTEMPTS]) then
      return bury(record, id)
    end
    record[REFERENCE] = ''
    return give_back(record, id, at, 'retried')
  end
  record[YIELDS] = int(tonumber(record[YIELDS]) + 1)
  if tonumber(record[YIELDS]) > yields_max then
    return bury(record, id)
  end
  return give_back(record, id, at, kind)
end

-- A result of the newest epoch is taken even after its lease ran out, as long as nobody claimed the job again:
-- throwing finished GPU work away would only run it twice.
local function owns(record, at)
  if record[EPOCH] ~= ARGV[at + 1] or record[SETTLED_EPOCH] == ARGV[at + 1] then
    return false
  end
  return record[STATE] == 'running' or (record[STATE] == 'pending' and ARGV[at + 2] == 'completed')
end

for i = 1, count do
  local id, at = ids[i], 6 + (i - 1) * 9
  local record = latest[id] or (raws[i] and cjson.decode(raws[i]))
  local verdict = 'stale'
  if record and owns(record, at) then
    verdict = 'accepted'
    if record[STATE] == 'pending' then
      redis.call('ZREM', KEYS[8 + tonumber(ARGV[at + 8])], id)
    end
    local event = apply(record, id, at)
    record[SETTLED_EPOCH], record[SETTLED_KIND] = ARGV[at + 1], ARGV[at + 2]
    latest[id] = record
    changes[#changes + 1] = id
    changes[#changes + 1] = cjson.encode(record)
    ended[#ended + 1] = id
    if ARGV[at + 3] ~= '' then
      results[#results + 1] = id
      results[#results + 1] = ARGV[at + 3]
    end
    events[#events + 1] = { event, id, ARGV[at + 1], record[WORKER], ARGV[at + 4] }
  elseif record and record[SETTLED_EPOCH] == ARGV[at + 1] and record[SETTLED_KIND] == ARGV[at + 2] then
    verdict = 'duplicate'
  elseif record then
    events[#events + 1] = { 'refused', id, ARGV[at + 1], '', ARGV[at + 2] }
  end
  reply[#reply + 1] = verdict
  reply[#reply + 1] = record and record[STATE] or ''
end
if #ended > 0 then
  redis.call('HSET', jobs_key, unpack(changes))
  redis.call('ZREM', leases_key, unpack(ended))
end
if #results > 0 then
  redis.call('HSET', results_key, unpack(results))
end
if #finished > 0 then
  redis.call('ZADD', finished_key, unpack(finished))
end
emit(events_key, ARGV[1], events)
return reply
