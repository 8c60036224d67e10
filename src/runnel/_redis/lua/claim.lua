#!lua flags=allow-oom
-- Claims one tick of a task, so that it runs once even while leaders change.
--
-- KEYS    1 ticks hash
-- ARGV    1 task   2 tick (a number that grows)   3 nonce of the claim, the same when it is repeated
-- Answer  1: claimed, run it.  0: somebody else has claimed it, or it is older than one that was claimed
local claim = ARGV[1] .. '|claim'
local last, nonce = unpack(redis.call('HMGET', KEYS[1], ARGV[1], claim))
if last and tonumber(last) >= tonumber(ARGV[2]) then
  return last == ARGV[2] and nonce == ARGV[3] and 1 or 0    -- 1: the answer to this claim was lost
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2], claim, ARGV[3])
return 1
