-- schedule_pause: schedules submit nothing until they are resumed.
-- KEYS: schedules schedule_due
-- ARGV: names…
-- Returns per name: paused | already_paused | unknown
local schedules_key, schedule_due_key = KEYS[1], KEYS[2]
local reply = {}
for i, name in ipairs(ARGV) do
  if redis.call('HEXISTS', schedules_key, name) == 0 then
    reply[i] = 'unknown'
  else
    reply[i] = redis.call('ZREM', schedule_due_key, name) == 1 and 'paused' or 'already_paused'
  end
end
return reply
