#!lua flags=allow-oom
-- Moves the position of a processor by hand. The running owner finds out at its next commit, or when it is told, and
-- acquires again: until then its commits are answered with RESET.
--
-- KEYS (one slot)  1 positions hash   2 log of the partition
-- ARGV             1 partition   2 group   3 offset   4 count   5 the offset that is expected there; none: any
-- Answer           the previous offset, or an empty string; if another one was expected, or it is not one of this log,
--                  which has replaced another, nothing was changed (without an expected one, that is counted beside the
--                  position: rollbacks:<partition>)
-- Includes log.lua
local partition, group, offset, count = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local stored = redis.call('HGET', KEYS[1], partition)
local token, previous = (stored or '0:||0'):match('^([^|]*)|([^|]*)|')
local mirror, marked = has_group(KEYS[2], group), has_group(KEYS[2], mark_of(group))
local replaced = stored and not mirror and not marked
if ARGV[5] and (ARGV[5] ~= previous or replaced) then return previous end
if not marked then set_mark(KEYS[2], group) end
redis.call('XGROUP', mirror and 'SETID' or 'CREATE', KEYS[2], group, offset, 'ENTRIESREAD', count)
redis.call('HSET', KEYS[1], partition, token .. '|' .. offset .. '|' .. count .. '|reset')
if replaced then
  redis.call('HINCRBY', KEYS[1], 'rollbacks:' .. partition, 1)
  redis.call('HDEL', KEYS[1], 'removed:' .. partition)   -- of a log that is no more
end
return previous
