#!lua flags=allow-oom
-- Seals a slot group of a stream: nothing can be appended to its logs any more.
--
-- KEYS (one slot)  1 seal   2 set of registered processors   3.. the logs
-- ARGV             1 number of the generation that takes its place
-- Answer           {the registered processors, the highest id in any of the logs}
-- Includes log.lua
redis.call('SET', KEYS[1], ARGV[1])
local highest = '0-0'
for i = 3, #KEYS do
  local log = describe(KEYS[i])
  if log and before(highest, log['last-generated-id']) then highest = log['last-generated-id'] end
end
return {redis.call('SMEMBERS', KEYS[2]), highest}
