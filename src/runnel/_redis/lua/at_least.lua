#!lua
-- Raises a number in the metadata of a stream, which never falls.
--
-- KEYS    1 metadata hash
-- ARGV    1 field   2 number
if tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
end
return redis.status_reply('OK')
