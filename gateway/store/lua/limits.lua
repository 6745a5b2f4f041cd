-- limits: all limits of the queue, how many jobs of whom run, and where the meters of the rates stand.
-- KEYS: limits usage rates meta
-- Returns now_us aging_ms (empty: the default), then the three hashes, each as one list of fields and values
local limits_key, usage_key, rates_key, meta_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
return {
  int(now_us), redis.call('HGET', meta_key, 'aging_ms') or '', redis.call('HGETALL', limits_key),
  redis.call('HGETALL', usage_key), redis.call('HGETALL', rates_key)
}
