-- claim: grant leases on the best jobs of the classes that each requesting worker can serve now.
-- Replayable: a request id that was answered before gets the same jobs again, as long as they are still its own.
-- KEYS: jobs specs leases meta events classes owners served limits usage rates, then one memory per request, then
--       one pending set per class named
-- ARGV: lease_ms events_max request_count class_count, class ids…, then per request:
--       request_id worker count slots n, n positions among the classes
-- Returns: classes known, paused (0/1), now_ms, then per request: number of grants, ms until a rate limit lets the
--       next job through (0: no rate limit holds one back), and per grant
--       id spec epoch class attempts recoveries reference cancel submitted_ms enqueued_ms expires_ms
local jobs_key, specs_key, leases_key = KEYS[1], KEYS[2], KEYS[3]
local meta_key, events_key, classes_key = KEYS[4], KEYS[5], KEYS[6]
local owners_key, served_key, limits_key, usage_key, rates_key = KEYS[7], KEYS[8], KEYS[9], KEYS[10], KEYS[11]
local lease_ms, request_count, class_count = tonumber(ARGV[1]), tonumber(ARGV[3]), tonumber(ARGV[4])
local AVOIDED_MAX = 64
-- A class that was not served for this many levels' worth of waiting no longer pays for its tenant's other classes.
local PATIENCE = 10
local UNBOUNDED = 2 ^ 52
local class_base = 11 + request_count
local settings = redis.call('HMGET', meta_key, 'paused', 'aging_ms')
local paused = settings[1] == '1'
local aging = aging_ticks(settings[2])
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
  reply[at], reply[at + 1] = '0', '0'
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

-- What this call has learnt, once for all its requests: the classes' heads by position, when classes and tenants
-- were last served (in ticks), and what each limit lets through.
local heads, stamps, moved, budgets, metered = {}, {}, {}, {}, {}
local clock, limited = now_tick, nil

local function look(head)
  head.order = tonumber(redis.call('ZRANGE', KEYS[head.position], 0, 0, 'WITHSCORES')[2])
end

local function learn_owners(found)
  local names = {}
  for i, head in ipairs(found) do
    names[i] = head.class
  end
  for i, owner in ipairs(redis.call('HMGET', owners_key, unpack(names))) do
    found[i].service, found[i].tenant = string.match(owner or '', '^(%S*) ?(%S*)$')
  end
end

-- Stamps made in this call stay; those read here are not later than the next one.
local function learn_stamps(found)
  local asked = {}
  for _, head in ipairs(found) do
    asked[#asked + 1], asked[#asked + 2] = 'class ' .. head.class, 'tenant ' .. head.tenant
  end
  local earlier = redis.call('HMGET', served_key, unpack(asked))
  for i, field in ipairs(asked) do
    stamps[field] = stamps[field] or tonumber(earlier[i] or 0)
    clock = math.max(clock, stamps[field])
  end
end

-- A limit is `running_max interval_us burst` (-1: any number, 0: at any rate). The meter of a rate stands at the time
-- when the next start would be due if starts came evenly; it may run ahead of the clock by a burst.
local function load_budgets(fields)
  local defined = redis.call('HMGET', limits_key, 'tenant *', unpack(fields))
  local active = redis.call('HMGET', usage_key, unpack(fields))
  local meters = redis.call('HMGET', rates_key, unpack(fields))
  for i, field in ipairs(fields) do
    local limit = defined[i + 1] or (string.sub(field, 1, 7) == 'tenant ' and defined[1])
    local budget = false
    if limit then
      local running, interval, burst = string.match(limit, '^(%-?%d+) (%d+) (%d+)$')
      budget = { field = field, started = 0, running = UNBOUNDED, interval = tonumber(interval) }
      if tonumber(running) >= 0 then
        budget.running = tonumber(running) - tonumber(active[i] or 0)
      end
      budget.left = budget.running
      if budget.interval > 0 then
        budget.meter = math.max(tonumber(meters[i] or 0), now_us)
        budget.ahead = tonumber(burst) * budget.interval
        budget.left = math.min(budget.left, math.floor((now_us + budget.ahead - budget.meter) / budget.interval))
      end
    end
    budgets[field] = budget
  end
end

local function learn_limits(found)
  local fields, asked = {}, {}
  for _, head in ipairs(found) do
    for _, field in ipairs(limits_of(head.service, head.tenant)) do
      if budgets[field] == nil and not asked[field] then
        asked[field] = true
        fields[#fields + 1] = field
      end
    end
  end
  if #fields > 0 then
    load_budgets(fields)
  end
  for _, head in ipairs(found) do
    head.budgets = {}
    for _, field in ipairs(limits_of(head.service, head.tenant)) do
      head.budgets[#head.budgets + 1] = budgets[field] or nil
    end
  end
end

-- Heads with a waiting job among the classes of one request. What decides between them is read only where there is
-- something to decide: a single class of a queue without limits costs nothing more.
local function heads_of(first, n)
  local found = {}
  for i = first, first + n - 1 do
    local position = class_base + tonumber(ARGV[i])
    local head = heads[position]
    if not head then
      head = { position = position, class = ARGV[4 + position - class_base], budgets = {} }
      look(head)
      heads[position] = head
    end
    found[#found + 1] = head.order and head or nil
  end
  if #found > 0 and limited == nil then
    limited = redis.call('HLEN', limits_key) > 0
  end
  if #found > 1 or (#found == 1 and limited) then
    learn_owners(found)
    local alone = not limited
    for _, head in ipairs(found) do
      alone = alone and head.tenant == found[1].tenant
    end
    if not alone then
      learn_stamps(found)
    end
    if limited then
      learn_limits(found)
    end
  end
  return found
end

local function held_back(head)
  for _, budget in ipairs(head.budgets) do
    if budget.left < 1 then
      return true
    end
  end
  return false
end

-- A tenant's turn, in ticks, the smallest first: since when its best job waits, or since when it was last served if
-- that is later, and the job's rank on top. Among equal priorities this is round robin, whatever the backlogs.
local function turn_of(head)
  local lead = head.order % RANKS * aging
  -- Ticks of a burst of submissions run ahead of the time.
  local arrived = math.min(math.floor(head.order / RANKS) - lead, now_tick)
  local patient = math.max(stamps['class ' .. head.class], arrived) + PATIENCE * aging
  return math.max(arrived, math.min(stamps['tenant ' .. head.tenant], patient)) + lead
end

-- A tenant's best head is the one first in order; a tenant alone needs no turn.
local function rank_group(group, alone)
  local best, least = nil, UNBOUNDED * 2
  for i = 1, #group do
    local order = group[i].order
    if order and order < least and not held_back(group[i]) then
      best, least = group[i], order
    end
  end
  group.best = best
  group.turn = group.best and not alone and turn_of(group.best) or 0
end

local function groups_of(found)
  local groups, group_by = {}, {}
  for _, head in ipairs(found) do
    local tenant = head.tenant or ''
    if not group_by[tenant] then
      group_by[tenant] = {}
      groups[#groups + 1] = group_by[tenant]
    end
    head.group = group_by[tenant]
    head.group[#head.group + 1] = head
  end
  for _, group in ipairs(groups) do
    rank_group(group, #groups == 1)
  end
  return groups
end

local function choose(groups)
  local best
  for _, group in ipairs(groups) do
    if group.best and (not best or group.turn < best.turn or
      (group.turn == best.turn and group.best.order < best.best.order)) then
      best = group
    end
  end
  return best and best.best
end

local function served(head, count)
  clock = clock + count
  head.fields = head.fields or { 'class ' .. head.class, 'tenant ' .. head.tenant }
  for _, field in ipairs(head.fields) do
    stamps[field] = clock
    if not moved[field] then
      moved[field] = true
      moved[#moved + 1] = field
    end
  end
end

-- Whether that used up a limit.
local function spend(head, count)
  local spent = false
  for _, budget in ipairs(head.budgets) do
    budget.left = budget.left - count
    spent = spent or budget.left < 1
  end
  return spent
end

-- Takes up to `wanted` ids, each with its head; a single class is popped in one call.
local function pop(found, wanted)
  local ids, taken, groups, live = {}, {}, groups_of(found), 0
  for _, head in ipairs(found) do
    live = live + (head.order and 1 or 0)
  end
  while #ids < wanted do
    local head = choose(groups)
    if not head then
      break
    end
    local count = live == 1 and wanted - #ids or 1
    for _, budget in ipairs(head.budgets) do
      count = math.min(count, budget.left)
    end
    local popped = redis.call('ZPOPMIN', KEYS[head.position], int(count))
    for i = 1, #popped, 2 do
      ids[#ids + 1], taken[#taken + 1] = popped[i], head
    end
    if head.tenant then
      served(head, #popped / 2)
    end
    look(head)
    live = live - (head.order and 0 or 1)
    if spend(head, #popped / 2) then
      for _, group in ipairs(groups) do
        rank_group(group, #groups == 1)
      end
    else
      rank_group(head.group, #groups == 1)
    end
  end
  return ids, taken
end

local function started(head)
  for _, budget in ipairs(head.budgets) do
    budget.started = budget.started + 1
    metered[#metered + 1] = budget.interval > 0 and budget.started == 1 and budget or nil
  end
end

-- Milliseconds until a rate lets another job of these classes through; 0 when no rate holds one back.
local function wait_ms(found)
  local least = 0
  for _, head in ipairs(found) do
    for _, budget in ipairs(head.budgets) do
      if head.order and budget.interval > 0 and budget.left < 1 and budget.running > budget.started then
        local due_us = budget.meter + (budget.started + 1) * budget.interval - budget.ahead - now_us
        local ms = math.max(1, math.ceil(due_us / 1000))
        least = least == 0 and ms or math.min(least, ms)
      end
    end
  end
  return least
end

local function claim(memory_position, request_id, worker, wanted, slots, first, n)
  local at = #reply + 1
  reply[at], reply[at + 1] = '0', '0'
  local found = heads_of(first, n)
  local granted, avoided, changes, leases, memory = 0, {}, {}, {}, {}
  while granted < wanted and #avoided / 3 < AVOIDED_MAX do
    local ids, taken = pop(found, wanted - granted)
    if #ids == 0 then
      break
    end
    local raws = redis.call('HMGET', jobs_key, unpack(ids))
    local specs = redis.call('HMGET', specs_key, unpack(ids))
    for i = 1, #ids do
      local id, head, record = ids[i], taken[i], raws[i] and cjson.decode(raws[i])
      if record and not head.tenant then
        head.tenant = record[TENANT]
        served(head, #ids)
      end
      if not record or record[STATE] ~= 'pending' then
        -- an id without a waiting job (keys changed by hand) simply leaves the queue
        spend(head, -1)
      elseif record[EXPIRES] ~= '0' and tonumber(record[EXPIRES]) <= now_ms then
        -- so does a job whose deadline has passed: the next sweep ends it
        spend(head, -1)
      elseif record[AVOID_WORKER] == worker and tonumber(record[AVOID_UNTIL]) > now_ms then
        spend(head, -1)
        avoided[#avoided + 1], avoided[#avoided + 2], avoided[#avoided + 3] = id, record[ORDER], head
      else
        record[STATE] = 'running'
        record[EPOCH] = int(math.max(tonumber(record[EPOCH]) + 1, now_us))
        record[WORKER] = worker
        record[NUMBER] = '0'
        granted = granted + 1
        started(head)
        count_running(record, 1)
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
  -- What this worker should leave to others for a moment goes back.
  for i = 1, #avoided, 3 do
    redis.call('ZADD', KEYS[avoided[i + 2].position], avoided[i + 1], avoided[i])
    look(avoided[i + 2])
  end
  if granted < wanted then
    reply[at + 1] = int(wait_ms(found))
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
  local raw = redis.call('GET', KEYS[11 + r])
  local memory = raw and cjson.decode(raw)
  if memory and memory[1] == request_id then
    replay(memory[2])
  elseif paused then
    reply[#reply + 1] = '0'
    reply[#reply + 1] = '0'
  else
    claim(11 + r, request_id, ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3], at + 5, n)
  end
  at = at + 5 + n
end
if #moved > 0 then
  local fields = {}
  for _, field in ipairs(moved) do
    fields[#fields + 1] = field
    fields[#fields + 1] = int(stamps[field])
  end
  redis.call('HSET', served_key, unpack(fields))
end
for _, budget in ipairs(metered) do
  redis.call('HSET', rates_key, budget.field, int(budget.meter + budget.started * budget.interval))
end
write_counts(usage_key)
emit(events_key, ARGV[2], events)
return reply
