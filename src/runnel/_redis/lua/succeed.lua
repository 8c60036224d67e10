#!lua
-- The next generation of a stream is what producers append to from here on. Its predecessor is sealed already.
--
-- KEYS    1 metadata hash
-- ARGV    1 number of the predecessor
-- Answer  1; 0 if that is not the one in use, or nothing was proposed: nothing was changed, somebody was faster
local number, partitions, slot_groups, following =
  unpack(redis.call('HMGET', KEYS[1], 'generation', 'partition_count', 'slot_groups', 'next'))
if (number or '0') ~= ARGV[1] or not following then return 0 end
local next_partitions, next_slot_groups = following:match('^(%d+)|(%d+)$')
redis.call('HSET', KEYS[1], 'was:' .. ARGV[1], partitions .. '|' .. slot_groups,
  'partition_count', next_partitions, 'slot_groups', next_slot_groups,
  'generation', string.format('%.0f', ARGV[1] + 1))
redis.call('HDEL', KEYS[1], 'next')
return 1
