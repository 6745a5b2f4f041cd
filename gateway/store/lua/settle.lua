-- settle: end leases: completed, failed (retry or dead), snoozed, released, cancelled. Terminal states absorb. A job
-- that cannot be claimed again before its deadline expires instead of going back; children of ended jobs are told.
-- KEYS: those of endings (_prelude_ending), leases usage limits, then one pending set per class named
-- ARGV: events_max retention_ms dead_retention_ms yields_max told_max count, then per settlement (stride 9):
--       id epoch kind body detail delay_ms avoid_ms final class_position
-- Returns per settlement: verdict (accepted | duplicate | stale), state of the job afterwards; last the number of
--       children that became due
local leases_key, usage_key, limits_key = KEYS[ENDING_KEYS + 1], KEYS[ENDING_KEYS + 2], KEYS[ENDING_KEYS + 3]
local class_base = ENDING_KEYS + 3
local retention_ms, dead_retention_ms, yields_max = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local count = tonumber(ARGV[6])
local ids, reply, let_go, freed = {}, {}, {}, {}
for i = 1, count do
  ids[i] = ARGV[7 + (i - 1) * 9]
end
local raws = redis.call('HMGET', jobs_key, unpack(ids))

local function give_back(record, id, at, event)
  local delay_ms, avoid_ms = tonumber(ARGV[at + 5]), tonumber(ARGV[at + 6])
  if record[EXPIRES] ~= '0' and tonumber(record[EXPIRES]) <= now_ms + delay_ms then
    return 'expired', expire(id, record, dead_retention_ms)
  end
  watch_deadline(id, record)
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
    redis.call('ZADD', KEYS[class_base + tonumber(ARGV[at + 8])], record[ORDER], id)
    redis.call('PUBLISH', wake_key, record[CLASS])
  end
  return delay_ms > 0 and event .. '_later' or event
end

-- Applies one settlement to its record and names the event, and its detail where that is not the settler's own.
local function apply(record, id, at)
  local kind = ARGV[at + 2]
  if kind == 'completed' then
    finish(id, record, 'completed', retention_ms)
    return 'completed'
  end
  if kind == 'cancelled' or record[CANCEL] == '1' then
    finish(id, record, 'cancelled', retention_ms)
    return 'cancelled'
  end
  if kind == 'failed' then
    record[ATTEMPTS] = int(tonumber(record[ATTEMPTS]) + 1)
    if ARGV[at + 7] == '1' or tonumber(record[ATTEMPTS]) >= tonumber(record[MAX_ATTEMPTS]) then
      finish(id, record, 'dead', dead_retention_ms)
      return 'dead'
    end
    record[REFERENCE] = ''
    return give_back(record, id, at, 'retried')
  end
  record[YIELDS] = int(tonumber(record[YIELDS]) + 1)
  if tonumber(record[YIELDS]) > yields_max then
    finish(id, record, 'dead', dead_retention_ms)
    return 'dead'
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
  local id, at = ids[i], 7 + (i - 1) * 9
  local record = latest[id] or (raws[i] and cjson.decode(raws[i]))
  local verdict = 'stale'
  if record and owns(record, at) then
    verdict = 'accepted'
    if record[STATE] == 'pending' then
      redis.call('ZREM', KEYS[class_base + tonumber(ARGV[at + 8])], id)
    else
      count_running(record, -1)
      freed[#freed + 1] = not freed[record[CLASS]] and record[CLASS] or nil
      freed[record[CLASS]] = true
    end
    if ARGV[at + 3] ~= '' then
      explained(id, ARGV[at + 3])
    end
    local event, detail = apply(record, id, at)
    record[SETTLED_EPOCH], record[SETTLED_KIND] = ARGV[at + 1], ARGV[at + 2]
    keep(id, record)
    let_go[#let_go + 1] = id
    events[#events + 1] = { event, id, ARGV[at + 1], record[WORKER], detail or ARGV[at + 4] }
  elseif record and record[SETTLED_EPOCH] == ARGV[at + 1] and record[SETTLED_KIND] == ARGV[at + 2] then
    verdict = 'duplicate'
  elseif record then
    events[#events + 1] = { 'refused', id, ARGV[at + 1], '', ARGV[at + 2] }
  end
  reply[#reply + 1] = verdict
  reply[#reply + 1] = record and record[STATE] or ''
end
if #ended > 0 then
  tell_families(tonumber(ARGV[5]), retention_ms)
end
if #let_go > 0 then
  redis.call('ZREM', leases_key, unpack(let_go))
  write_down()
end
write_counts(usage_key)
emit(events_key, ARGV[1], events)
-- A limit may have held back jobs like these.
if #freed > 0 and redis.call('HLEN', limits_key) > 0 then
  for _, class_id in ipairs(freed) do
    redis.call('PUBLISH', wake_key, class_id)
  end
end
reply[#reply + 1] = int(unblocked)
return reply
