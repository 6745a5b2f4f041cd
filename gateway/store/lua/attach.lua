-- attach: store the service's own reference of a running job, so that a later owner can ask for it.
-- KEYS: jobs
-- ARGV: count, then per lease: id epoch reference
-- Returns per lease: accepted | duplicate | stale
local jobs_key = KEYS[1]
local reply = {}
for i = 1, tonumber(ARGV[1]) do
  local id, epoch, reference = ARGV[i * 3 - 1], ARGV[i * 3], ARGV[i * 3 + 1]
  local raw = redis.call('HGET', jobs_key, id)
  local record = raw and cjson.decode(raw)
  if not record or record[STATE] ~= 'running' or record[EPOCH] ~= epoch then
    reply[i] = 'stale'
  elseif record[REFERENCE] == reference then
    reply[i] = 'duplicate'
  else
    record[REFERENCE] = reference
    redis.call('HSET', jobs_key, id, cjson.encode(record))
    reply[i] = 'accepted'
  end
end
return reply
