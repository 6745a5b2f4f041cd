-- schedule_list: all schedules at one moment; their number is bounded.
-- KEYS: schedules schedule_due schedule_runs
-- Returns: now_ms, then per schedule: name definition due_ms(empty while paused) revision last_ms last_job
local schedules_key, schedule_due_key, schedule_runs_key = KEYS[1], KEYS[2], KEYS[3]
local reply = { int(now_ms) }
local entries = redis.call('HGETALL', schedules_key)
for i = 1, #entries, 2 do
  local run = cjson.decode(redis.call('HGET', schedule_runs_key, entries[i]))
  local due_ms = redis.call('ZSCORE', schedule_due_key, entries[i])
  for _, value in ipairs({ entries[i], entries[i + 1], due_ms or '', run[1], run[2], run[3] }) do
    reply[#reply + 1] = value
  end
end
return reply
