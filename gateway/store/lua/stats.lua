-- stats: counts of the queue and the age of the longest waiting job at the head of a class.
-- KEYS: jobs leases scheduled finished dead meta waiting, then one pending set per class
-- Returns: now_ms jobs running scheduled finished dead paused oldest_ms waiting, then per class its pending count
local jobs_key, leases_key, scheduled_key = KEYS[1], KEYS[2], KEYS[3]
local finished_key, dead_key, meta_key, waiting_key = KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local oldest_ms, counts = 0, {}
for position = 8, #KEYS do
  counts[#counts + 1] = int(redis.call('ZCARD', KEYS[position]))
  local head = redis.call('ZRANGE', KEYS[position], 0, 0)
  if head[1] then
    local raw = redis.call('HGET', jobs_key, head[1])
    oldest_ms = math.max(oldest_ms, raw and now_ms - tonumber(cjson.decode(raw)[ENQUEUED]) or 0)
  end
end
local reply = {
  int(now_ms), int(redis.call('HLEN', jobs_key)), int(redis.call('ZCARD', leases_key)),
  int(redis.call('ZCARD', scheduled_key)), int(redis.call('ZCARD', finished_key)),
  int(redis.call('ZCARD', dead_key)), redis.call('HGET', meta_key, 'paused') and '1' or '0', int(oldest_ms),
  int(redis.call('ZCARD', waiting_key))
}
for _, count in ipairs(counts) do
  reply[#reply + 1] = count
end
return reply
