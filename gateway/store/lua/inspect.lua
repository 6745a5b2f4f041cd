-- inspect: everything known of some jobs, read at one moment.
-- KEYS: jobs specs results leases scheduled
-- ARGV: job ids…
-- Returns per job: record spec result lease_until due (empty strings where absent)
local jobs_key, specs_key, results_key, leases_key, scheduled_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local reply = {}
for _, id in ipairs(ARGV) do
  reply[#reply + 1] = redis.call('HGET', jobs_key, id) or ''
  reply[#reply + 1] = redis.call('HGET', specs_key, id) or ''
  reply[#reply + 1] = redis.call('HGET', results_key, id) or ''
  reply[#reply + 1] = redis.call('ZSCORE', leases_key, id) or ''
  reply[#reply + 1] = redis.call('ZSCORE', scheduled_key, id) or ''
end
return reply
