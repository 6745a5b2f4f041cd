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

-- Integers as text, exact up to 2^53.
local function int(number)
  return string.format('%.0f', number)
end

-- One stream entry for all transitions of one call: the group commit of the event log.
local function emit(events_key, events_max, list)
  if #list > 0 then
    redis.call('XADD', events_key, 'MAXLEN', '~', events_max, '*', 'at', int(now_ms), 'e', cjson.encode(list))
  end
end
