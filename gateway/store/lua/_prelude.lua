-- Shared first part of every operation: Redis time, the job record's layout and the event writer.
-- A job record is a JSON array of strings (strings only: Lua numbers lose digits above 2^53 and print as 1e+15).
local time = redis.call('TIME')
local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
local now_ms = math.floor(now_us / 1000)
local STATE, EPOCH, ORDER, CLASS, MAX_ATTEMPTS, ATTEMPTS = 1, 2, 3, 4, 5, 6
local RECOVERIES, YIELDS, WORKER, REFERENCE, CANCEL, PROGRESS = 7, 8, 9, 10, 11, 12
local NUMBER, SUBMITTED, ENQUEUED, ENDED, AVOID_WORKER, AVOID_UNTIL = 13, 14, 15, 16, 17, 18
local SETTLED_EPOCH, SETTLED_KIND, IDEMPOTENCY, BEST = 19, 20, 21, 22
-- Deadline (ms; 0: none), unique key (hold_ms:key), parents not yet ended, whether jobs wait for this one (0/1).
local EXPIRES, UNIQUE, PARENTS, CHILDREN = 23, 24, 25, 26
local TENANT, SERVICE = 27, 28
-- A job's order is (tick + rank * aging) * RANKS + rank: below 2^53, the smallest first. Its tick counts 32 us since
-- 2020 and grows with every job of the queue; its rank is 100 - priority; aging is the number of ticks of waiting
-- that weigh as much as one level of priority.
local RANKS, AGING_DEFAULT_MS = 128, 60000
local now_tick = math.floor((now_us - 1577836800000000) / 32)
local counts = {}

-- Integers as text, exact up to 2^53.
local function int(number)
  return string.format('%.0f', number)
end

local function aging_ticks(stored_ms)
  return math.floor((tonumber(stored_ms) or AGING_DEFAULT_MS) * 125 / 4)
end

-- Names of what limits a job of this service and tenant, in `limits`, `usage` and `rates`.
local function limits_of(service, tenant)
  return { 'service ' .. service, tenant ~= '' and 'tenant ' .. tenant or nil }
end

-- Running jobs are counted where a job begins (1) or ceases (-1) to run, and nowhere else.
local function count_running(record, change)
  local count = counts[record[CLASS]]
  if not count then
    count = { limits_of(record[SERVICE], record[TENANT]), 0 }
    counts[record[CLASS]], counts[#counts + 1] = count, count
  end
  count[2] = count[2] + change
end

local function write_counts(usage_key)
  for _, count in ipairs(counts) do
    for _, field in ipairs(count[2] ~= 0 and count[1] or {}) do
      if redis.call('HINCRBY', usage_key, field, int(count[2])) < 0 then
        redis.call('HDEL', usage_key, field)
      end
    end
  end
end

-- One stream entry for all transitions of one call: the group commit of the event log.
local function emit(events_key, events_max, list)
  if #list > 0 then
    redis.call('XADD', events_key, 'MAXLEN', '~', events_max, '*', 'at', int(now_ms), 'e', cjson.encode(list))
  end
end
