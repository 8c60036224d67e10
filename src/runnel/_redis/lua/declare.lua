#!lua flags=allow-oom
-- Stores the properties of a stream when it is first used, and returns all that is stored of it.
--
-- KEYS    1 metadata hash
-- ARGV    field, value, ...
-- Answer  field, value, ...
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
return redis.call('HGETALL', KEYS[1])
