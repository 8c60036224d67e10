#!lua flags=allow-oom
-- Moves the position of a processor by hand. The running owner finds out at its next commit, or when it is told, and
-- acquires again: until then its commits are answered with RESET.
--
-- KEYS (one slot)  1 positions hash   2 log of the partition
-- ARGV             1 partition   2 group   3 offset   4 count   5 the offset that is expected there; none: any
-- Answer           the previous offset, or an empty string; if another one was expected, nothing was changed
local stored = redis.call('HGET', KEYS[1], ARGV[1]) or '0:||0'
local token, previous = stored:match('^([^|]*)|([^|]*)|')
if ARGV[5] and ARGV[5] ~= previous then return previous end
redis.call('HSET', KEYS[1], ARGV[1], token .. '|' .. ARGV[3] .. '|' .. ARGV[4] .. '|reset')
-- Without the group, the log would be taken for one that has replaced another.
redis.pcall('XGROUP', 'CREATE', KEYS[2], ARGV[2], ARGV[3], 'MKSTREAM', 'ENTRIESREAD', ARGV[4])
redis.pcall('XGROUP', 'SETID', KEYS[2], ARGV[2], ARGV[3], 'ENTRIESREAD', ARGV[4])
return previous
