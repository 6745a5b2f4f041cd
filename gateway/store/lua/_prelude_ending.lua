-- Shared second part of the operations that end jobs: what an end does to the indexes, to a unique key and to the jobs
-- that wait for this one. It names the first KEYS of each of them.
local jobs_key, results_key, scheduled_key, finished_key, dead_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local deadlines_key, waiting_key, children_key, untold_key = KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local unique_key, holds_key, events_key, wake_key = KEYS[10], KEYS[11], KEYS[12], KEYS[13]
local ENDING_KEYS = 13
local latest, changed, dirty = {}, {}, {}
local events, results, finished, ended = {}, {}, {}, {}
local told, unblocked = 0, 0

-- A job's record as this call has left it so far; nil for an unknown id.
local function record_of(id)
  if latest[id] == nil then
    local raw = redis.call('HGET', jobs_key, id)
    latest[id] = raw and cjson.decode(raw) or false
  end
  return latest[id] or nil
end

-- Has the record written at the end of the call.
local function keep(id, record)
  latest[id] = record
  if not dirty[id] then
    dirty[id] = true
    changed[#changed + 1] = id
  end
end

local function explained(id, reason)
  results[#results + 1] = id
  results[#results + 1] = reason
  return reason
end

-- A job that is not running is watched for its deadline; a running one is bounded by its time-out, and a sweep may
-- have stopped watching it meanwhile.
local function watch_deadline(id, record)
  if record[EXPIRES] ~= '0' then
    redis.call('ZADD', deadlines_key, record[EXPIRES], id)
  end
end

local function release_unique(id, record)
  local hold_ms, name = string.match(record[UNIQUE], '^(%d+):(.*)$')
  if redis.call('HGET', unique_key, name) == id then
    if hold_ms == '0' then
      redis.call('HDEL', unique_key, name)
    else
      redis.call('ZADD', holds_key, int(now_ms + tonumber(hold_ms)), name)
    end
  end
end

-- Ends a job. Whoever waits for it is told by tell_families, after the event of this end.
local function finish(id, record, state, retention_ms)
  record[STATE] = state
  record[ENDED] = int(now_ms)
  finished[#finished + 1] = int(now_ms + retention_ms)
  finished[#finished + 1] = id
  if state == 'dead' then
    redis.call('ZADD', dead_key, int(now_ms), id)
  end
  if record[EXPIRES] ~= '0' then
    redis.call('ZREM', deadlines_key, id)
  end
  if record[UNIQUE] ~= '' then
    release_unique(id, record)
  end
  if record[CHILDREN] ~= '0' then
    record[CHILDREN] = '0'
    local family = redis.call('HGET', children_key, id)
    redis.call('HDEL', children_key, id)
    ended[#ended + 1] = { state, id, family and cjson.decode(family) or {} }
  end
  keep(id, record)
end

-- Ends a job whose deadline has passed.
local function expire(id, record, retention_ms)
  finish(id, record, 'dead', retention_ms)
  return explained(id, '{"kind":"expired","message":"its deadline passed before it was done"}')
end

-- One parent less to wait for; after the last one the child is due, and the next sweep makes it pending.
local function unblock(id, record)
  record[PARENTS] = int(tonumber(record[PARENTS]) - 1)
  if record[PARENTS] == '0' then
    local due_ms = math.max(now_ms, tonumber(redis.call('ZSCORE', waiting_key, id)))
    redis.call('ZREM', waiting_key, id)
    redis.call('ZADD', scheduled_key, int(due_ms), id)
    record[STATE] = 'scheduled'
    unblocked = unblocked + 1
    events[#events + 1] = { 'unblocked', id, record[EPOCH], '', '' }
  end
  keep(id, record)
end

local function cancel_child(id, record, parent, state, retention_ms)
  redis.call('ZREM', waiting_key, id)
  finish(id, record, 'cancelled', retention_ms)
  local reason = explained(id, '{"kind":"parent_failed","message":' ..
    cjson.encode('its parent ' .. parent .. ' ended ' .. state) .. '}')
  events[#events + 1] = { 'cancelled', id, record[EPOCH], '', reason }
end

-- Tells the children of one ended job. The order tells a child from a later job with its id.
local function tell(state, parent, family, retention_ms)
  for _, child in ipairs(family) do
    local id, record = child[1], record_of(child[1])
    told = told + 1
    if record and record[STATE] == 'waiting' and record[ORDER] == child[2] then
      if state == 'completed' or child[3] == 'release' then
        unblock(id, record)
      else
        cancel_child(id, record, parent, state, retention_ms)
      end
    end
  end
end

-- Tells the families of all jobs that ended in this call, those that end by being told included. Beyond the bound
-- families are put off: a sweep tells them.
local function tell_families(told_max, retention_ms)
  local at = 1
  while ended[at] do
    if told < told_max then
      tell(ended[at][1], ended[at][2], ended[at][3], retention_ms)
    else
      redis.call('RPUSH', untold_key, cjson.encode(ended[at]))
    end
    at = at + 1
  end
end

-- Writes what was gathered; pieces stay below what unpack can hold.
local function write_down()
  for first = 1, #changed, 500 do
    local fields = {}
    for i = first, math.min(first + 499, #changed) do
      fields[#fields + 1] = changed[i]
      fields[#fields + 1] = cjson.encode(latest[changed[i]])
    end
    redis.call('HSET', jobs_key, unpack(fields))
  end
  for first = 1, #results, 1000 do
    redis.call('HSET', results_key, unpack(results, first, math.min(first + 999, #results)))
  end
  for first = 1, #finished, 1000 do
    redis.call('ZADD', finished_key, unpack(finished, first, math.min(first + 999, #finished)))
  end
end
