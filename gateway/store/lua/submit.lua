-- submit: accept jobs into the queue; repeating the call (same ids) changes nothing.
-- KEYS: jobs specs idempotency classes scheduled finished meta events wake, then one pending set per class used
-- ARGV: unfinished_max classes_max events_max count, then per job (stride 11):
--       id spec class_position class_id class_json order_base idempotency_key delay_ms max_attempts tenant service
-- Returns per job: status, id of the stored job
local jobs_key, specs_key, idempotency_key, classes_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local scheduled_key, finished_key, meta_key, events_key, wake_key = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local unfinished_max, classes_max, count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local ids = {}
for i = 1, count do
  ids[i] = ARGV[5 + (i - 1) * 11]
end
local known = redis.call('HMGET', jobs_key, unpack(ids))
local unfinished = redis.call('HLEN', jobs_key) - redis.call('ZCARD', finished_key)
local class_count = redis.call('HLEN', classes_key)
local sequence = redis.call('HINCRBY', meta_key, 'sequence', count) - count
local reply, events, records, specs, pending, wake, seen = {}, {}, {}, {}, {}, {}, {}

-- The verdict before anything is written; a duplicate names the job that is already there.
local function refusal(i, id, at)
  if known[i] or seen[id] then
    return 'duplicate', id
  end
  if ARGV[at + 6] ~= '' then
    local earlier = redis.call('HGET', idempotency_key, ARGV[at + 6])
    if earlier then
      return 'duplicate', earlier
    end
  end
  if unfinished >= unfinished_max then
    return 'full', id
  end
  if redis.call('HEXISTS', classes_key, ARGV[at + 3]) == 0 then
    if class_count >= classes_max then
      return 'too_many_classes', id
    end
    redis.call('HSET', classes_key, ARGV[at + 3], ARGV[at + 4])
    class_count = class_count + 1
  end
  return nil, id
end

for i = 1, count do
  local at = 5 + (i - 1) * 11
  local status, id = refusal(i, ids[i], at)
  if not status then
    status = 'accepted'
    seen[id] = true
    unfinished = unfinished + 1
    local order = int(tonumber(ARGV[at + 5]) + sequence + i)
    local delay_ms = tonumber(ARGV[at + 7])
    local detail = ARGV[at + 9] ~= '' and cjson.encode({ tenant = ARGV[at + 9] }) or ''
    local state = delay_ms > 0 and 'scheduled' or 'pending'
    if ARGV[at + 6] ~= '' then
      redis.call('HSET', idempotency_key, ARGV[at + 6], id)
    end
    records[#records + 1] = id
    records[#records + 1] = cjson.encode({
      state, '0', order, ARGV[at + 3], ARGV[at + 8], '0', '0', '0', '', '', '0', '0', '0',
      int(now_ms), int(now_ms), '0', '', '0', '', '', ARGV[at + 6], '0', '0', '', '0', '0',
      ARGV[at + 9], ARGV[at + 10]
    })
    specs[#specs + 1] = id
    specs[#specs + 1] = ARGV[at + 1]
    if delay_ms > 0 then
      redis.call('ZADD', scheduled_key, int(now_ms + delay_ms), id)
      events[#events + 1] = { 'deferred', id, '0', '', detail }
    else
      local position = tonumber(ARGV[at + 2])
      local members = pending[position] or {}
      members[#members + 1] = order
      members[#members + 1] = id
      pending[position] = members
      wake[ARGV[at + 3]] = true
      events[#events + 1] = { 'submitted', id, '0', '', detail }
    end
  end
  reply[#reply + 1] = status
  reply[#reply + 1] = id
end
if #records > 0 then
  redis.call('HSET', jobs_key, unpack(records))
  redis.call('HSET', specs_key, unpack(specs))
  for position = 1, #KEYS - 9 do
    if pending[position] then
      redis.call('ZADD', KEYS[9 + position], unpack(pending[position]))
    end
  end
  emit(events_key, ARGV[3], events)
  for class_id in pairs(wake) do
    redis.call('PUBLISH', wake_key, class_id)
  end
end
return reply
