#!lua
-- Declares by what a generation of a stream is to be replaced. From here on, whoever comes across it sees it through.
--
-- KEYS    1 metadata hash
-- ARGV    1 number of the generation   2 how the next one is divided: partitions|slot groups
-- Answer  1; 0 if another one is in use meanwhile, or is to be replaced by something else, or the stream is moved to
--         another server: nothing was changed
if (redis.call('HGET', KEYS[1], 'generation') or '0') ~= ARGV[1] then return 0 end
if redis.call('HEXISTS', KEYS[1], 'moving') + redis.call('HEXISTS', KEYS[1], 'moved') > 0 then return 0 end
redis.call('HSETNX', KEYS[1], 'next', ARGV[2])
return redis.call('HGET', KEYS[1], 'next') == ARGV[2] and 1 or 0
