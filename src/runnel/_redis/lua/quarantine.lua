#!lua flags=allow-oom
-- Marks a partition as poisoned, if the caller still owns it. The mark goes when its member leaves or dies.
--
-- KEYS (one slot)  1 owners hash   2 parked hash
-- ARGV             1 partition   2 member   3 token   4 details (JSON)
-- Answer           OK, or FENCED: somebody else owns the partition; nothing was changed
local owner = redis.call('HGET', KEYS[1], ARGV[1])
if not owner or owner:match('^(.-|%d+)|') ~= ARGV[2] .. '|' .. ARGV[3] then return 'FENCED' end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. '|' .. ARGV[4])
return 'OK'
