#!lua flags=allow-oom
-- Forgets what was counted for operators in a partition: an operator has taken note of it.
--
-- KEYS    1 positions hash of the processor
-- ARGV    1 partition   2 lost   3 rollbacks: what the operator has seen
-- Answer  1, or 0: other numbers are there; nothing was changed
local lost, rollbacks = 'lost:' .. ARGV[1], 'rollbacks:' .. ARGV[1]
local stored = redis.call('HMGET', KEYS[1], lost, rollbacks)
if (stored[1] or '0') ~= ARGV[2] or (stored[2] or '0') ~= ARGV[3] then return 0 end
redis.call('HDEL', KEYS[1], lost, rollbacks)
return 1
