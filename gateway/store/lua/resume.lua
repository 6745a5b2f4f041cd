-- resume: claims are allowed again.
-- KEYS: meta wake
-- Returns: 1 when the queue was paused, else 0
local meta_key, wake_key = KEYS[1], KEYS[2]
local resumed = redis.call('HDEL', meta_key, 'paused')
redis.call('PUBLISH', wake_key, 'resume')
return resumed
