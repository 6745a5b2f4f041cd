-- register: services say that they live, where, and for how long that is to be believed; silent ones disappear.
-- KEYS: services wake
-- ARGV: services_max count, then per service: id ttl_ms description (JSON; empty signs off)
-- Returns: number registered afterwards, then per service: registered | renewed | gone | full
local services_key, wake_key = KEYS[1], KEYS[2]
local services_max = tonumber(ARGV[1])
local changed, reply = false, {}

-- An entry is its end, the moment since which it says the same, and its description: written, and so expiring, as one.
local entries, count = redis.call('HGETALL', services_key), 0
local known = {}
for i = 1, #entries, 2 do
  local ends_ms, since_ms, description = string.match(entries[i + 1], '^(%d+) (%d+) (.*)$')
  if ends_ms and tonumber(ends_ms) > now_ms then
    known[entries[i]] = { description, since_ms }
    count = count + 1
  else
    redis.call('HDEL', services_key, entries[i])
    changed = true
  end
end

for i = 1, tonumber(ARGV[2]) do
  local id, ttl_ms, description = ARGV[i * 3], tonumber(ARGV[i * 3 + 1]), ARGV[i * 3 + 2]
  if description == '' then
    reply[i] = 'gone'
    if known[id] then
      known[id] = nil
      count = count - 1
      changed = true
      redis.call('HDEL', services_key, id)
    end
  elseif not known[id] and count >= services_max then
    reply[i] = 'full'
  else
    local same = known[id] and known[id][1] == description
    local since_ms = same and known[id][2] or int(now_ms)
    reply[i] = same and 'renewed' or 'registered'
    changed = changed or not same
    count = count + (known[id] and 0 or 1)
    known[id] = { description, since_ms }
    redis.call('HSET', services_key, id, int(now_ms + ttl_ms) .. ' ' .. since_ms .. ' ' .. description)
  end
end
if changed then
  redis.call('PUBLISH', wake_key, 'changed services')
end
return { int(count), unpack(reply) }
