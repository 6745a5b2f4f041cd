-- pause: no claims from this queue until resume; running jobs go on.
-- KEYS: meta
-- Returns: 1 when the queue was running, else 0
local meta_key = KEYS[1]
return redis.call('HSET', meta_key, 'paused', '1')
