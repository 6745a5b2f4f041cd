-- claim: grant leases on the best jobs of the classes that each requesting worker can serve now.
-- Replayable: a request id that was answered before gets the same jobs again, as long as they are still its own.
-- KEYS: jobs specs leases meta events classes, then one memory per request, then one pending set per class named
-- ARGV: lease_ms events_max request_count class_count, class ids…, then per request:
--       request_id worker count slots n, n positions among the classes
-- Returns: classes known, paused (0/1), now_ms, then per request: number of grants, and per grant
--       id spec epoch class attempts recoveries reference cancel submitted_ms enqueued_ms expires_ms
local jobs_key, specs_key, leases_key = KEYS[1], KEYS[2], KEYS[3]
local meta_key, events_key, classes_key = KEYS[4], KEYS[5], KEYS[6]
local lease_ms, request_count, class_count = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local AVOIDED_MAX = 64
local class_base = 6 + request_count
local paused = redis.call('HGET', meta_key, 'paused') == '1'
local reply = { int(redis.call('HLEN', classes_key)), paused and '1' or '0', int(now_ms) }
local events = {}

local function append_grant(id, spec, record)
  for _, value in ipairs({
    id, spec, record[EPOCH], record[CLASS], record[ATTEMPTS], record[RECOVERIES], record[REFERENCE],
    record[CANCEL], record[SUBMITTED], record[ENQUEUED], record[EXPIRES]
  }) do
    reply[#reply + 1] = value
  end
end

-- The earlier answer to the same request, without the jobs that are no longer this lease's. The lease is
-- extended too: the asker counts its right from the moment this repetition left.
local function replay(pairs_granted)
  local ids, epochs = {}, {}
  for i = 1, #pairs_granted, 2 do
    ids[#ids + 1] = pairs_granted[i]
    epochs[#epochs + 1] = pairs_granted[i + 1]
  end
  local raws = redis.call('HMGET', jobs_key, unpack(ids))
  local specs = redis.call('HMGET', specs_key, unpack(ids))
  local at = #reply + 1
  local granted = 0
  reply[at] = '0'
  for i = 1, #ids do
    local record = raws[i] and cjson.decode(raws[i])
    if record and record[STATE] == 'running' and record[EPOCH] == epochs[i] then
      redis.call('ZADD', leases_key, int(now_ms + lease_ms), ids[i])
      append_grant(ids[i], specs[i], record)
      granted = granted + 1
    end
  end
  reply[at] = int(granted)
end

-- Best heads of the named classes: position in KEYS and the score of its first job.
local function heads_of(first, n)
  local heads = {}
  for i = first, first + n - 1 do
    local position = class_base + tonumber(ARGV[i])
    local head = redis.call('ZRANGE', KEYS[position], 0, 0, 'WITHSCORES')
    if head[1] then
      heads[#heads + 1] = { position, tonumber(head[2]) }
    end
  end
  return heads
end

-- Takes up to `wanted` ids in order across the heads; a single class is popped in one call.
local function pop(heads, wanted)
  local ids = {}
  while #ids < wanted and #heads > 0 do
    local best = 1
    for i = 2, #heads do
      if heads[i][2] < heads[best][2] then
        best = i
      end
    end
    local position = heads[best][1]
    local popped = redis.call('ZPOPMIN', KEYS[position], #heads == 1 and wanted - #ids or 1)
    for i = 1, #popped, 2 do
      ids[#ids + 1] = popped[i]
    end
    local head = redis.call('ZRANGE', KEYS[position], 0, 0, 'WITHSCORES')
    if head[1] then
      heads[best][2] = tonumber(head[2])
    else
      table.remove(heads, best)
    end
  end
  return ids
end

-- Class position by id, to put a job back that this worker should leave to others for a moment.
local position_of = {}
for i = 1, class_count do
  position_of[ARGV[4 + i]] = class_base + i
end

local function claim(memory_position, request_id, worker, wanted, slots, first, n)
  local at = #reply + 1
  reply[at] = '0'
  local heads = heads_of(first, n)
  local granted, avoided, changes, leases, memory = 0, {}, {}, {}, {}
  while granted < wanted and #heads > 0 and #avoided / 2 < AVOIDED_MAX do
    local ids = pop(heads, wanted - granted)
    local raws = redis.call('HMGET', jobs_key, unpack(ids))
    local specs = redis.call('HMGET', specs_key, unpack(ids))
    for i = 1, #ids do
      local id, record = ids[i], raws[i] and cjson.decode(raws[i])
      if not record or record[STATE] ~= 'pending' then
        -- an id without a waiting job (keys changed by hand) simply leaves the queue
      elseif record[EXPIRES] ~= '0' and tonumber(record[EXPIRES]) <= now_ms then
        -- so does a job whose deadline has passed: the next sweep ends it
      elseif record[AVOID_WORKER] == worker and tonumber(record[AVOID_UNTIL]) > now_ms then
        avoided[#avoided + 1] = id
        avoided[#avoided + 1] = record
      else
        record[STATE] = 'running'
        record[EPOCH] = int(math.max(tonumber(record[EPOCH]) + 1, now_us))
        record[WORKER] = worker
        record[NUMBER] = '0'
        granted = granted + 1
        changes[#changes + 1] = id
        changes[#changes + 1] = cjson.encode(record)
        leases[#leases + 1] = int(now_ms + lease_ms)
        leases[#leases + 1] = id
        memory[#memory + 1] = id
        memory[#memory + 1] = record[EPOCH]
        append_grant(id, specs[i], record)
        events[#events + 1] = { 'claimed', id, record[EPOCH], worker, slots }
      end
    end
  end
  for i = 1, #avoided, 2 do
    redis.call('ZADD', KEYS[position_of[avoided[i + 1][CLASS]]], avoided[i + 1][ORDER], avoided[i])
  end
  if granted > 0 then
    redis.call('HSET', jobs_key, unpack(changes))
    redis.call('ZADD', leases_key, unpack(leases))
    redis.call('SET', KEYS[memory_position], cjson.encode({ request_id, memory }), 'PX', int(lease_ms * 2))
    reply[at] = int(granted)
  end
end

local at = 5 + class_count
for r = 1, request_count do
  local request_id, n = ARGV[at], tonumber(ARGV[at + 4])
  local raw = redis.call('GET', KEYS[6 + r])
  local memory = raw and cjson.decode(raw)
  if memory and memory[1] == request_id then
    replay(memory[2])
  elseif paused then
    reply[#reply + 1] = '0'
  else
    claim(6 + r, request_id, ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3], at + 5, n)
  end
  at = at + 5 + n
end
emit(events_key, ARGV[2], events)
return reply
