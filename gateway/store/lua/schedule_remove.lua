-- schedule_remove: forget schedules; jobs that they submitted stay.
-- KEYS: schedules schedule_due schedule_runs
-- ARGV: names…
-- Returns per name: removed | unknown
local schedules_key, schedule_due_key, schedule_runs_key = KEYS[1], KEYS[2], KEYS[3]
local reply = {}
for i, name in ipairs(ARGV) do
  reply[i] = redis.call('HDEL', schedules_key, name) == 1 and 'removed' or 'unknown'
  redis.call('ZREM', schedule_due_key, name)
  redis.call('HDEL', schedule_runs_key, name)
end
return reply
