-- discover: the services that are registered and whose time is not over, read at one moment.
-- KEYS: services
-- Returns: now_ms, then per service: id, ends_ms, since_ms, description (JSON)
local services_key = KEYS[1]
local reply = { int(now_ms) }
local entries = redis.call('HGETALL', services_key)
for i = 1, #entries, 2 do
  local ends_ms, since_ms, description = string.match(entries[i + 1], '^(%d+) (%d+) (.*)$')
  if ends_ms and tonumber(ends_ms) > now_ms then
    reply[#reply + 1] = entries[i]
    reply[#reply + 1] = ends_ms
    reply[#reply + 1] = since_ms
    reply[#reply + 1] = description
  end
end
return reply
