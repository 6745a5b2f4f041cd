-- heartbeat: workers say that they live and what they can do; silent ones disappear from the registry.
-- KEYS: workers
-- ARGV: ttl_ms count, then per worker: id description (JSON; empty to sign off)
-- Returns: number of workers registered afterwards
local workers_key = KEYS[1]
local ttl_ms = tonumber(ARGV[1])
for i = 1, tonumber(ARGV[2]) do
  local id, description = ARGV[1 + i * 2], ARGV[2 + i * 2]
  if description == '' then
    redis.call('HDEL', workers_key, id)
  else
    redis.call('HSET', workers_key, id, int(now_ms) .. ' ' .. description)
  end
end
local entries = redis.call('HGETALL', workers_key)
for i = 1, #entries, 2 do
  local seen_ms = tonumber(string.match(entries[i + 1], '^(%d+) '))
  if not seen_ms or seen_ms + ttl_ms < now_ms then
    redis.call('HDEL', workers_key, entries[i])
  end
end
return int(redis.call('HLEN', workers_key))
