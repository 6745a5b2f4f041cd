-- schedule_skip: pass over a missed instant without a job; fenced like the firing of one (see submit).
-- KEYS: schedule_due schedule_runs
-- ARGV: name revision instant_ms next_ms
-- Returns: skipped | fenced
local schedule_due_key, schedule_runs_key = KEYS[1], KEYS[2]
local raw = redis.call('HGET', schedule_runs_key, ARGV[1])
local due_ms = redis.call('ZSCORE', schedule_due_key, ARGV[1])
local taken = not raw or not due_ms or cjson.decode(raw)[1] ~= ARGV[2] or tonumber(due_ms) ~= tonumber(ARGV[3])
if taken or tonumber(due_ms) > now_ms then
  return 'fenced'
end
redis.call('ZADD', schedule_due_key, ARGV[4], ARGV[1])
return 'skipped'
