#!lua flags=allow-oom
-- Removes what the logs of a slot group know of a processor: its positions, its registration, its consumer groups.
--
-- KEYS (one slot)  1 positions hash   2 set of registered processors   3.. the logs
-- ARGV             1 group (the processor's name in keys)
-- Includes log.lua
redis.call('DEL', KEYS[1])
redis.call('SREM', KEYS[2], ARGV[1])
local mark = mark_of(ARGV[1])
for i = 3, #KEYS do
  redis.pcall('XGROUP', 'DESTROY', KEYS[i], ARGV[1])
  redis.pcall('XGROUP', 'DESTROY', KEYS[i], mark)
end
return redis.status_reply('OK')
