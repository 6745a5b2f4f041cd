-- cancel: a waiting job ends at once; a running one is told through its lease.
-- KEYS: those of endings (_prelude_ending), then one pending set per job
-- ARGV: events_max retention_ms told_max count, then per job: id class. An id that a new job of another class took
--       over meanwhile is unknown: its waiting place is not among the keys.
-- Returns per job: cancelled | requested | already_ended | unknown
local retention_ms = tonumber(ARGV[2])
local reply = {}
for i = 1, tonumber(ARGV[4]) do
  local id, class = ARGV[3 + i * 2], ARGV[4 + i * 2]
  local record = record_of(id)
  if not record or record[CLASS] ~= class then
    reply[i] = 'unknown'
  elseif record[STATE] == 'running' then
    reply[i] = 'requested'
    if record[CANCEL] ~= '1' then
      record[CANCEL] = '1'
      keep(id, record)
      events[#events + 1] = { 'cancel_requested', id, record[EPOCH], record[WORKER], '' }
      redis.call('PUBLISH', wake_key, 'cancel ' .. record[WORKER])
    end
  elseif record[STATE] == 'pending' or record[STATE] == 'scheduled' or record[STATE] == 'waiting' then
    reply[i] = 'cancelled'
    redis.call('ZREM', KEYS[ENDING_KEYS + i], id)
    redis.call('ZREM', scheduled_key, id)
    redis.call('ZREM', waiting_key, id)
    finish(id, record, 'cancelled', retention_ms)
    events[#events + 1] = { 'cancelled', id, record[EPOCH], '', '' }
  else
    reply[i] = 'already_ended'
  end
end
tell_families(tonumber(ARGV[3]), retention_ms)
write_down()
emit(events_key, ARGV[1], events)
return reply
