-- limit: set, remove or first define limits of the whole queue; every later claim obeys them, whoever sends it.
-- KEYS: limits meta wake
-- ARGV: only_new (0/1: leave what is defined already) count, then per limit: field value (empty: no such limit)
-- Returns per limit: changed (0/1), value now (empty: none)
local limits_key, meta_key, wake_key = KEYS[1], KEYS[2], KEYS[3]
local reply, changed = {}, false

-- How priority ages is no limit, but it is set and read the same way.
local function read(field)
  if field == 'aging_ms' then
    return redis.call('HGET', meta_key, field) or ''
  end
  return redis.call('HGET', limits_key, field) or ''
end

local function write(field, value)
  if field == 'aging_ms' and value == '' then
    redis.call('HDEL', meta_key, field)
  elseif field == 'aging_ms' then
    redis.call('HSET', meta_key, field, value)
  elseif value == '' then
    redis.call('HDEL', limits_key, field)
  else
    redis.call('HSET', limits_key, field, value)
  end
end

for i = 1, tonumber(ARGV[2]) do
  local field, value = ARGV[1 + i * 2], ARGV[2 + i * 2]
  local before = read(field)
  local due = before ~= value and (before == '' or ARGV[1] == '0')
  if due then
    write(field, value)
    changed = true
  end
  reply[#reply + 1] = due and '1' or '0'
  reply[#reply + 1] = read(field)
end
if changed then
  redis.call('PUBLISH', wake_key, 'resume')
end
return reply
