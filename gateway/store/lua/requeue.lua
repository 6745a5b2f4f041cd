-- requeue: an operator gives dead letters a new life: attempts, recoveries and reference start afresh, the epoch goes on.
-- KEYS: jobs results finished dead events wake, then one pending set per job
-- ARGV: events_max count, then per job: id class (another class than recorded: unknown, as in cancel)
-- Returns per job: requeued | not_dead | unknown
local jobs_key, results_key, finished_key, dead_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local events_key, wake_key = KEYS[5], KEYS[6]
local reply, events = {}, {}
for i = 1, tonumber(ARGV[2]) do
  local id, class = ARGV[1 + i * 2], ARGV[2 + i * 2]
  local raw = redis.call('HGET', jobs_key, id)
  local record = raw and cjson.decode(raw)
  if not record or record[CLASS] ~= class then
    reply[i] = 'unknown'
  elseif record[STATE] ~= 'dead' then
    reply[i] = 'not_dead'
  else
    reply[i] = 'requeued'
    record[STATE] = 'pending'
    record[ATTEMPTS], record[RECOVERIES], record[YIELDS] = '0', '0', '0'
    record[REFERENCE], record[CANCEL], record[PROGRESS], record[BEST] = '', '0', '0', '0'
    record[ENQUEUED], record[ENDED] = int(now_ms), '0'
    redis.call('HSET', jobs_key, id, cjson.encode(record))
    redis.call('HDEL', results_key, id)
    redis.call('ZREM', finished_key, id)
    redis.call('ZREM', dead_key, id)
    redis.call('ZADD', KEYS[6 + i], record[ORDER], id)
    redis.call('PUBLISH', wake_key, record[CLASS])
    events[#events + 1] = { 'requeued', id, record[EPOCH], '', '' }
  end
end
emit(events_key, ARGV[1], events)
return reply
