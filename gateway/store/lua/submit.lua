-- submit: accept jobs into the queue; repeating the call (same ids) changes nothing.
-- KEYS: jobs specs idempotency classes scheduled finished meta events wake unique holds deadlines waiting children
--       schedule_due schedule_runs owners, then one pending set per class used
-- ARGV: unfinished_max classes_max events_max children_max count, then per job (stride 12):
--       id spec class_position class_id class_json rank idempotency_key delay_ms max_attempts tenant service
--       options
--       Options are empty or JSON: expires_ms, expires_in_ms, unique, unique_for_ms, after (ids of parents, all
--       submitted before), on_failure (of a parent: cancel, release), schedule ([name, revision, instant_ms, next_ms]).
-- Returns per job: status, id of the stored job (of the parent, where that is the reason of a refusal)
local jobs_key, specs_key, idempotency_key, classes_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local scheduled_key, finished_key, meta_key, events_key, wake_key = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local unique_key, holds_key, deadlines_key, waiting_key = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local children_key, schedule_due_key, schedule_runs_key = KEYS[14], KEYS[15], KEYS[16]
local owners_key = KEYS[17]
local unfinished_max, classes_max, children_max = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[4])
local count, class_base = tonumber(ARGV[5]), 17
local ids = {}
for i = 1, count do
  ids[i] = ARGV[6 + (i - 1) * 12]
end
local known = redis.call('HMGET', jobs_key, unpack(ids))
local unfinished = redis.call('HLEN', jobs_key) - redis.call('ZCARD', finished_key)
local class_count = redis.call('HLEN', classes_key)
local stored = redis.call('HMGET', meta_key, 'sequence', 'aging_ms')
local tick, aging = math.max(tonumber(stored[1] or 0), now_tick), aging_ticks(stored[2])
redis.call('HSET', meta_key, 'sequence', int(tick + count))
local reply, events, specs, pending, wake = {}, {}, {}, {}, {}
-- Records written at the end: new jobs, and parents that have children now.
local records, written, families = {}, {}, {}

local function keep(id, record)
  if not records[id] then
    written[#written + 1] = id
  end
  records[id] = record
end

local function family_of(parent)
  if not families[parent] then
    local raw = redis.call('HGET', children_key, parent)
    families[parent] = raw and cjson.decode(raw) or {}
  end
  return families[parent]
end

-- Parents that have not ended, each with its record; or why the job cannot wait for its parents, and the culprit.
local function unended(options)
  local found = {}
  for _, parent in ipairs(options.after or {}) do
    local raw = not records[parent] and redis.call('HGET', jobs_key, parent)
    local record = records[parent] or (raw and cjson.decode(raw))
    if not record then
      return nil, 'unknown_parent', parent
    end
    if record[STATE] == 'dead' or record[STATE] == 'cancelled' then
      if options.on_failure ~= 'release' then
        return nil, 'parent_failed', parent
      end
    elseif record[STATE] ~= 'completed' then
      if #family_of(parent) >= children_max then
        return nil, 'too_many_children', parent
      end
      found[#found + 1] = { parent, record }
    end
  end
  return found
end

local function holder_of(name)
  local holder = redis.call('HGET', unique_key, name)
  local until_ms = holder and redis.call('ZSCORE', holds_key, name)
  return (not until_ms or tonumber(until_ms) > now_ms) and holder or nil
end

local function expires_ms(options)
  return options.expires_ms or (options.expires_in_ms and now_ms + options.expires_in_ms) or 0
end

-- The verdict before anything is written; a duplicate names the job that is already there.
local function refusal(i, id, at, options)
  if known[i] or records[id] then
    return 'duplicate', id
  end
  if ARGV[at + 6] ~= '' then
    local earlier = redis.call('HGET', idempotency_key, ARGV[at + 6])
    if earlier then
      return 'duplicate', earlier
    end
  end
  local parents, holder, status, culprit = nil, options and options.unique and holder_of(options.unique)
  if holder then
    return 'duplicate', holder
  end
  if options then
    if expires_ms(options) ~= 0 and expires_ms(options) <= now_ms then
      return 'expired', id
    end
    parents, status, culprit = unended(options)
    if status then
      return status, culprit
    end
  end
  if unfinished >= unfinished_max then
    return 'full', id
  end
  if redis.call('HEXISTS', classes_key, ARGV[at + 3]) == 0 then
    if class_count >= classes_max then
      return 'too_many_classes', id
    end
    redis.call('HSET', classes_key, ARGV[at + 3], ARGV[at + 4])
    redis.call('HSET', owners_key, ARGV[at + 3], ARGV[at + 10] .. ' ' .. ARGV[at + 9])
    class_count = class_count + 1
  end
  return nil, id, parents
end

-- Puts the options of an accepted job in force; adds to what its first event tells the auditor.
local function put_in_force(id, record, options, parents, told)
  if expires_ms(options) ~= 0 then
    record[EXPIRES] = int(expires_ms(options))
    redis.call('ZADD', deadlines_key, record[EXPIRES], id)
    told[#told + 1] = '"expires_ms":' .. record[EXPIRES]
  end
  if options.unique then
    record[UNIQUE] = int(options.unique_for_ms or 0) .. ':' .. options.unique
    redis.call('HSET', unique_key, options.unique, id)
    redis.call('ZREM', holds_key, options.unique)
    told[#told + 1] = '"unique":' .. cjson.encode(options.unique)
  end
  if #parents > 0 then
    record[PARENTS] = int(#parents)
    local policy, names = options.on_failure or 'cancel', {}
    for i, parent in ipairs(parents) do
      local family = family_of(parent[1])
      family[#family + 1] = { id, record[ORDER], policy }
      parent[2][CHILDREN] = '1'
      keep(parent[1], parent[2])
      names[i] = parent[1]
    end
    told[#told + 1] = '"after":' .. cjson.encode(names) .. ',"on_failure":"' .. policy .. '"'
  end
  if options.schedule then
    told[#told + 1] = '"schedule":' .. cjson.encode(options.schedule[1]) .. ',"instant_ms":' ..
      int(options.schedule[3])
  end
end

local function accept(id, at, order, options, parents)
  local delay_ms = tonumber(ARGV[at + 7])
  local waits = parents and #parents > 0
  local state = waits and 'waiting' or delay_ms > 0 and 'scheduled' or 'pending'
  local record = {
    state, '0', order, ARGV[at + 3], ARGV[at + 8], '0', '0', '0', '', '', '0', '0', '0',
    int(now_ms), int(now_ms), '0', '', '0', '', '', ARGV[at + 6], '0', '0', '', '0', '0',
    ARGV[at + 9], ARGV[at + 10]
  }
  if ARGV[at + 6] ~= '' then
    redis.call('HSET', idempotency_key, ARGV[at + 6], id)
  end
  local told = ARGV[at + 9] ~= '' and { '"tenant":' .. cjson.encode(ARGV[at + 9]) } or {}
  if options then
    put_in_force(id, record, options, parents, told)
  end
  local detail = #told > 0 and '{' .. table.concat(told, ',') .. '}' or ''
  keep(id, record)
  specs[#specs + 1] = id
  specs[#specs + 1] = ARGV[at + 1]
  if waits then
    redis.call('ZADD', waiting_key, int(now_ms + delay_ms), id)
    events[#events + 1] = { 'blocked', id, '0', '', detail }
  elseif delay_ms > 0 then
    redis.call('ZADD', scheduled_key, int(now_ms + delay_ms), id)
    events[#events + 1] = { 'deferred', id, '0', '', detail }
  else
    local position = tonumber(ARGV[at + 2])
    local members = pending[position] or {}
    members[#members + 1] = order
    members[#members + 1] = id
    pending[position] = members
    wake[ARGV[at + 3]] = true
    events[#events + 1] = { 'submitted', id, '0', '', detail }
  end
end

-- Whether this instant of a schedule has come and nobody took it: the fence that lets one gateway of many fire it.
local function fires(schedule)
  local run = redis.call('HGET', schedule_runs_key, schedule[1])
  local due_ms = redis.call('ZSCORE', schedule_due_key, schedule[1])
  return run and due_ms and cjson.decode(run)[1] == schedule[2] and tonumber(due_ms) == schedule[3] and
    schedule[3] <= now_ms
end

-- The instant is over, with a new job or with the one that was there already.
local function move_on(schedule, id)
  redis.call('ZADD', schedule_due_key, int(schedule[4]), schedule[1])
  redis.call('HSET', schedule_runs_key, schedule[1], cjson.encode({ schedule[2], int(schedule[3]), id }))
end

for i = 1, count do
  local at = 6 + (i - 1) * 12
  local options = ARGV[at + 11] ~= '' and cjson.decode(ARGV[at + 11]) or nil
  local schedule = options and options.schedule
  local status, id, parents = 'fenced', ids[i], nil
  if not schedule or fires(schedule) then
    status, id, parents = refusal(i, ids[i], at, options)
    if not status then
      status = 'accepted'
      unfinished = unfinished + 1
      local rank = tonumber(ARGV[at + 5])
      accept(id, at, int((tick + i + rank * aging) * RANKS + rank), options, parents)
    end
    if schedule and (status == 'accepted' or status == 'duplicate') then
      move_on(schedule, id)
    end
  end
  reply[#reply + 1] = status
  reply[#reply + 1] = id
end

for first = 1, #written, 500 do
  local fields = {}
  for i = first, math.min(first + 499, #written) do
    fields[#fields + 1] = written[i]
    fields[#fields + 1] = cjson.encode(records[written[i]])
  end
  redis.call('HSET', jobs_key, unpack(fields))
end
if #specs > 0 then
  redis.call('HSET', specs_key, unpack(specs))
  for parent, family in pairs(families) do
    if #family > 0 then
      redis.call('HSET', children_key, parent, cjson.encode(family))
    end
  end
  for position = 1, #KEYS - class_base do
    if pending[position] then
      redis.call('ZADD', KEYS[class_base + position], unpack(pending[position]))
    end
  end
  emit(events_key, ARGV[3], events)
  for class_id in pairs(wake) do
    redis.call('PUBLISH', wake_key, class_id)
  end
end
return reply
