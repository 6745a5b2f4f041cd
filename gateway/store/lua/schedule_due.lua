-- schedule_due: schedules whose instant has come, the oldest first. Reading only: `submit` fires and moves them on.
-- KEYS: schedules schedule_due schedule_runs
-- ARGV: limit
-- Returns: now_ms, then per schedule: name definition due_ms revision last_ms last_job
local schedules_key, schedule_due_key, schedule_runs_key = KEYS[1], KEYS[2], KEYS[3]
local reply = { int(now_ms) }
local due = redis.call('ZRANGEBYSCORE', schedule_due_key, '-inf', int(now_ms), 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #due, 2 do
  local definition = redis.call('HGET', schedules_key, due[i])
  local raw = redis.call('HGET', schedule_runs_key, due[i])
  if definition and raw then
    local run = cjson.decode(raw)
    for _, value in ipairs({ due[i], definition, due[i + 1], run[1], run[2], run[3] }) do
      reply[#reply + 1] = value
    end
  else
    redis.call('ZREM', schedule_due_key, due[i])
  end
end
return reply
