-- cancel: a waiting job ends at once; a running one is told through its lease.
-- KEYS: jobs scheduled finished events wake, then one pending set per job
-- ARGV: events_max retention_ms count, then per job: id class. An id that a new job of another class took over
--       meanwhile is unknown: its waiting place is not among the keys.
-- Returns per job: cancelled | requested | already_ended | unknown
local jobs_key, scheduled_key, finished_key, events_key, wake_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local reply, events = {}, {}
for i = 1, tonumber(ARGV[3]) do
  local id, class = ARGV[2 + i * 2], ARGV[3 + i * 2]
  local raw = redis.call('HGET', jobs_key, id)
  local record = raw and cjson.decode(raw)
  if not record or record[CLASS] ~= class then
    reply[i] = 'unknown'
  elseif record[STATE] == 'running' then
    reply[i] = 'requested'
    if record[CANCEL] ~= '1' then
      record[CANCEL] = '1'
      redis.call('HSET', jobs_key, id, cjson.encode(record))
      events[#events + 1] = { 'cancel_requested', id, record[EPOCH], record[WORKER], '' }
      redis.call('PUBLISH', wake_key, 'cancel ' .. record[WORKER])
    end
  elseif record[STATE] == 'pending' or record[STATE] == 'scheduled' then
    reply[i] = 'cancelled'
    redis.call('ZREM', KEYS[5 + i], id)
    redis.call('ZREM', scheduled_key, id)
    record[STATE] = 'cancelled'
    record[ENDED] = int(now_ms)
    redis.call('ZADD', finished_key, int(now_ms + tonumber(ARGV[2])), id)
    redis.call('HSET', jobs_key, id, cjson.encode(record))
    events[#events + 1] = { 'cancelled', id, record[EPOCH], '', '' }
  else
    reply[i] = 'already_ended'
  end
end
emit(events_key, ARGV[1], events)
return reply
