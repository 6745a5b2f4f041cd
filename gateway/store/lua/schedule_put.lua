-- schedule_put: store a schedule under its name, due at its next instant; the same revision again changes nothing.
-- KEYS: schedules schedule_due schedule_runs
-- ARGV: schedules_max replace(0/1) name revision definition(JSON) next_ms
-- Returns: created | replaced | duplicate | exists | full
local schedules_key, schedule_due_key, schedule_runs_key = KEYS[1], KEYS[2], KEYS[3]
local name, revision = ARGV[3], ARGV[4]
local raw = redis.call('HGET', schedule_runs_key, name)
local run = raw and cjson.decode(raw)
if run and run[1] == revision then
  return 'duplicate'
elseif run and ARGV[2] == '0' then
  return 'exists'
elseif not run and redis.call('HLEN', schedules_key) >= tonumber(ARGV[1]) then
  return 'full'
end
redis.call('HSET', schedules_key, name, ARGV[5])
redis.call('ZADD', schedule_due_key, ARGV[6], name)
redis.call('HSET', schedule_runs_key, name, cjson.encode({ revision, run and run[2] or '0', run and run[3] or '' }))
return run and 'replaced' or 'created'
