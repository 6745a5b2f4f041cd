-- configure: set and remove the fleet's overrides of settings, provided that nobody changed them since they were read.
-- KEYS: config events wake
-- ARGV: revision expected, count, events_max, then per override: key value (JSON; empty removes it)
-- Returns: stored | unchanged | conflict, and the revision afterwards
local config_key, events_key, wake_key = KEYS[1], KEYS[2], KEYS[3]
local revision = redis.call('HGET', config_key, '_revision') or '0'
local sets, removed, events = {}, {}, {}
for i = 1, tonumber(ARGV[2]) do
  local key, value = ARGV[2 + i * 2], ARGV[3 + i * 2]
  local present = redis.call('HGET', config_key, key)
  if value == '' and present then
    removed[#removed + 1] = key
  elseif value ~= '' and present ~= value then
    sets[#sets + 1] = key
    sets[#sets + 1] = value
  end
end
-- Said before the revision is compared: a repeated call finds its own work done.
if #sets == 0 and #removed == 0 then
  return { 'unchanged', revision }
end
if revision ~= ARGV[1] then
  return { 'conflict', revision }
end
if #removed > 0 then
  redis.call('HDEL', config_key, unpack(removed))
end
revision = int(tonumber(revision) + 1)
-- A remark in the queue's story, without a job: who asks later why everything changed finds it there.
for i = 1, #sets, 2 do
  events[#events + 1] = { 'configured', '', '0', '', cjson.encode({ key = sets[i], value = sets[i + 1] }) }
end
for i = 1, #removed do
  events[#events + 1] = { 'configured', '', '0', '', cjson.encode({ key = removed[i], value = '' }) }
end
sets[#sets + 1] = '_revision'
sets[#sets + 1] = revision
redis.call('HSET', config_key, unpack(sets))
emit(events_key, ARGV[3], events)
redis.call('PUBLISH', wake_key, 'changed config')
return { 'stored', revision }
