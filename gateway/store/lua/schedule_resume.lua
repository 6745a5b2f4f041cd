-- schedule_resume: paused schedules are due again, each at the instant that its sender computed from that revision.
-- KEYS: schedule_due schedule_runs
-- ARGV: count, then per schedule: name revision next_ms
-- Returns per schedule: resumed | not_paused | changed | unknown
local schedule_due_key, schedule_runs_key = KEYS[1], KEYS[2]
local reply = {}
for i = 1, tonumber(ARGV[1]) do
  local name = ARGV[i * 3 - 1]
  local raw = redis.call('HGET', schedule_runs_key, name)
  if not raw then
    reply[i] = 'unknown'
  elseif cjson.decode(raw)[1] ~= ARGV[i * 3] then
    reply[i] = 'changed'
  else
    local added = redis.call('ZADD', schedule_due_key, 'NX', ARGV[i * 3 + 1], name)
    reply[i] = added == 1 and 'resumed' or 'not_paused'
  end
end
return reply
