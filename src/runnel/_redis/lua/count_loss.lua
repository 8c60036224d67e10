#!lua flags=allow-oom
-- Counts entries that a running owner has found removed before they were read; see `losses`.
--
-- KEYS    1 positions hash of the processor
-- ARGV    1 partition   2 token (number:member)   3 entries   4 entries processed or found removed so far, with these
-- Answer  OK, or FENCED: somebody else owns the partition; nothing was changed
--
-- Idempotent, and in step with `acquire`, by removed:<partition>: what lies before that is counted. What the owner has
-- read and not processed lies behind it: it may be removed as well, and then `acquire` counts it if the owner is gone.
local partition, removed = ARGV[1], tonumber(ARGV[4])
local stored = redis.call('HGET', KEYS[1], partition)
if not stored or stored:match('^[^|]*') ~= ARGV[2] then return redis.status_reply('FENCED') end
local known = tonumber(redis.call('HGET', KEYS[1], 'removed:' .. partition) or 0)
local new = removed - math.max(known, removed - tonumber(ARGV[3]))
if new > 0 then
  redis.call('HINCRBY', KEYS[1], 'lost:' .. partition, new)
  redis.call('HSET', KEYS[1], 'removed:' .. partition, ARGV[4])
end
return redis.status_reply('OK')
