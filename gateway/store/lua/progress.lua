-- progress: last value of a running job and entries of its own stream (progress notes, streamed result chunks).
-- KEYS: jobs, then one stream per note
-- ARGV: stream_max stream_ttl_ms count, then per note: id epoch number kind value body
-- Returns per note: accepted | duplicate | stale
local jobs_key = KEYS[1]
local BEST_STEP = 0.01 -- progress that counts against the poison-pill limit: at most 100 steps in a job's life
local reply = {}
for i = 1, tonumber(ARGV[3]) do
  local at = 4 + (i - 1) * 6
  local id, number, value = ARGV[at], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 4])
  local raw = redis.call('HGET', jobs_key, id)
  local record = raw and cjson.decode(raw)
  if not record or record[STATE] ~= 'running' or record[EPOCH] ~= ARGV[at + 1] then
    reply[i] = 'stale'
  elseif number <= tonumber(record[NUMBER]) then
    reply[i] = 'duplicate'
  else
    record[NUMBER] = int(number)
    if ARGV[at + 3] == 'progress' then
      record[PROGRESS] = ARGV[at + 4]
      if value >= tonumber(record[BEST]) + BEST_STEP then
        record[BEST] = ARGV[at + 4]
        record[RECOVERIES] = '0'
      end
    end
    redis.call('HSET', jobs_key, id, cjson.encode(record))
    redis.call('XADD', KEYS[1 + i], 'MAXLEN', '~', ARGV[1], '*', 'kind', ARGV[at + 3], 'epoch', ARGV[at + 1],
      'number', ARGV[at + 2], 'value', ARGV[at + 4], 'body', ARGV[at + 5])
    redis.call('PEXPIRE', KEYS[1 + i], ARGV[2])
    reply[i] = 'accepted'
  end
end
return reply
