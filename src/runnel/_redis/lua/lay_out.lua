#!lua flags=allow-oom
-- Lays out a slot group of a new generation, before anything is appended to it.
--
-- KEYS (one slot)  1 set of registered processors   2.. the logs
-- ARGV             1 an id that all in the logs shall be above   2.. processors to be registered
-- Includes log.lua
if #ARGV > 1 then redis.call('SADD', KEYS[1], unpack(ARGV, 2)) end
for i = 2, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('XGROUP', 'CREATE', KEYS[i], 'none', '0-0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', KEYS[i], 'none')
  end
  if before(describe(KEYS[i])['last-generated-id'], ARGV[1]) then redis.call('XSETID', KEYS[i], ARGV[1]) end
end
return redis.status_reply('OK')
