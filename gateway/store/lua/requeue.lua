-- requeue: an operator gives dead letters a new life: attempts, recoveries and reference start afresh, the epoch goes on.
-- Nothing holds the new life up: it has no deadline and no parents. A unique key is taken again, or refuses it.
-- KEYS: jobs results finished dead events wake unique holds, then one pending set per job
-- ARGV: events_max count, then per job: id class (another class than recorded: unknown, as in cancel)
-- Returns per job: requeued | not_dead | unique_taken | unknown
local jobs_key, results_key, finished_key, dead_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local events_key, wake_key, unique_key, holds_key = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local reply, events = {}, {}

-- Takes the job's unique key again; false when another job has it that has not ended, or is held after its end.
local function take_unique(id, record)
  if record[UNIQUE] == '' then
    return true
  end
  local name = string.match(record[UNIQUE], '^%d+:(.*)$')
  local holder = redis.call('HGET', unique_key, name)
  local until_ms = holder and redis.call('ZSCORE', holds_key, name)
  if holder and holder ~= id and not (until_ms and tonumber(until_ms) <= now_ms) then
    return false
  end
  redis.call('HSET', unique_key, name, id)
  redis.call('ZREM', holds_key, name)
  return true
end

for i = 1, tonumber(ARGV[2]) do
  local id, class = ARGV[1 + i * 2], ARGV[2 + i * 2]
  local raw = redis.call('HGET', jobs_key, id)
  local record = raw and cjson.decode(raw)
  if not record or record[CLASS] ~= class then
    reply[i] = 'unknown'
  elseif record[STATE] ~= 'dead' then
    reply[i] = 'not_dead'
  elseif not take_unique(id, record) then
    reply[i] = 'unique_taken'
  else
    reply[i] = 'requeued'
    record[STATE] = 'pending'
    record[ATTEMPTS], record[RECOVERIES], record[YIELDS] = '0', '0', '0'
    record[REFERENCE], record[CANCEL], record[PROGRESS], record[BEST] = '', '0', '0', '0'
    record[ENQUEUED], record[ENDED] = int(now_ms), '0'
    record[EXPIRES], record[PARENTS] = '0', '0'
    redis.call('HSET', jobs_key, id, cjson.encode(record))
    redis.call('HDEL', results_key, id)
    redis.call('ZREM', finished_key, id)
    redis.call('ZREM', dead_key, id)
    redis.call('ZADD', KEYS[8 + i], record[ORDER], id)
    redis.call('PUBLISH', wake_key, record[CLASS])
    events[#events + 1] = { 'requeued', id, record[EPOCH], '', '' }
  end
end
emit(events_key, ARGV[1], events)
return reply
