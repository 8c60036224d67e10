#!lua flags=allow-oom
-- Stores the properties of a stream when it is first used, and returns those that are stored.
--
-- KEYS    1 metadata hash
-- ARGV    field, value, ...
-- Answer  the value of each field, in the order of the arguments
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HSET', KEYS[1], unpack(ARGV)) end
local values = {}
for i = 1, #ARGV, 2 do values[#values + 1] = redis.call('HGET', KEYS[1], ARGV[i]) or '' end
return values
