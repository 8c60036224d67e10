#!lua flags=allow-oom
-- Claims one tick of a task, so that it runs once even while leaders change.
--
-- KEYS    1 ticks hash
-- ARGV    1 task   2 tick (a number that grows)
-- Answer  1: claimed, run it.  0: it was claimed before, or is older than one that was
local last = redis.call('HGET', KEYS[1], ARGV[1])
if last and tonumber(last) >= tonumber(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
