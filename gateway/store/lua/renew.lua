-- renew: extend leases by epoch; never gives a lease back to somebody who lost it.
-- KEYS: jobs leases
-- ARGV: lease_ms count, then per lease: id epoch
-- Returns per lease: held | cancel | lost
local jobs_key, leases_key = KEYS[1], KEYS[2]
local lease_ms, count = tonumber(ARGV[1]), tonumber(ARGV[2])
local ids, reply, leases = {}, {}, {}
for i = 1, count do
  ids[i] = ARGV[1 + i * 2]
end
local raws = redis.call('HMGET', jobs_key, unpack(ids))
for i = 1, count do
  local record = raws[i] and cjson.decode(raws[i])
  if record and record[STATE] == 'running' and record[EPOCH] == ARGV[2 + i * 2] then
    leases[#leases + 1] = int(now_ms + lease_ms)
    leases[#leases + 1] = ids[i]
    reply[i] = record[CANCEL] == '1' and 'cancel' or 'held'
  else
    reply[i] = 'lost'
  end
end
if #leases > 0 then
  redis.call('ZADD', leases_key, unpack(leases))
end
return reply
