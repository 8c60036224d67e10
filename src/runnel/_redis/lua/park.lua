#!lua flags=allow-oom
-- Changes by hand what is parked, and tells the members. A new epoch makes the answers to their next heartbeats full.
--
-- KEYS (one slot)  1 group hash   2 members hash   3 parked hash
-- ARGV             1 field: a partition, or * for all
--                  2 the value that is expected there; empty: none
--                  3 the new value; empty: none
-- Answer           1: changed.  0: another value was there; nothing was changed
local there = redis.call('HGET', KEYS[3], ARGV[1]) or ''
if there ~= ARGV[2] then return 0 end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[3], ARGV[1])
else
  redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch then   -- without a group there is nobody to tell
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', math.max(tonumber(epoch) + 1, now)))
end
for _, member in ipairs(redis.call('HKEYS', KEYS[2])) do
  redis.call('SPUBLISH', KEYS[1]:gsub(':group$', ':wake:') .. member, 'parked')
end
return 1
