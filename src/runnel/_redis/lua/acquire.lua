#!lua flags=allow-oom
-- Begins an ownership in the data slot: from here on, the previous owner is fenced. Returns where to go on.
--
-- KEYS (one slot)  1 positions hash of the processor   2 log of the partition   3 set of registered processors
-- ARGV             1 partition   2 token   3 member   4 group (the processor's name in keys)
-- Answer
--   {STALE, token}                             a higher token was seen here; nothing was changed
--   {OK, offset, count, lost, rolled_back}     offset: the position; count: entries of the log up to it
--     lost           entries that were removed before this processor had processed them
--     rolled_back    the stored position, if it lay behind the end of the log: Redis has lost data; else empty
--
-- Idempotent: the same token again gives the same answer, but for lost and rolled_back, which are reported once, and
-- counted beside the position, for operators: lost:<partition> (entries) and rollbacks:<partition> (times).
-- removed:<partition> says how many entries of the log had been removed when losses were counted last: they are counted
-- once, also if a member has noticed them while it ran and stopped before its position went past them.

local partition, token, member, group = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local function before(a, b)
  local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms < b_ms or (a_ms == b_ms and tonumber(a_seq) < tonumber(b_seq))
end

local offset, count
local stored = redis.call('HGET', KEYS[1], partition)
if stored then
  local its_token, its_member, its_offset, its_count = stored:match('^(%d+):([^|]*)|([^|]*)|(%d+)')
  if tonumber(its_token) > token or (tonumber(its_token) == token and its_member ~= member) then
    return {'STALE', its_token}
  end
  offset, count = its_offset, tonumber(its_count)
end

if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('XGROUP', 'CREATE', KEYS[2], group, '0-0', 'MKSTREAM')
end
local log, flat = {}, redis.call('XINFO', 'STREAM', KEYS[2])
for i = 1, #flat, 2 do log[flat[i]] = flat[i + 1] end
local last, added, length = log['last-generated-id'], log['entries-added'], log['length']
local first = log['first-entry'] and log['first-entry'][1]

local lost, rolled_back = 0, ''
if not offset then                        -- new here: from the first entry there is
  offset, count = '0-0', added - length
elseif before(last, offset) then          -- a read from behind the end would wait for ever
  rolled_back, offset, count = offset, last, added
elseif offset == last then
  count = added
elseif not first or before(offset, first) then
  local known = tonumber(redis.call('HGET', KEYS[1], 'removed:' .. partition) or 0)
  lost = math.max(0, added - length - math.max(count, known))
  count = added - length
  if not first then offset = last end
end

if lost > 0 then
  redis.call('HINCRBY', KEYS[1], 'lost:' .. partition, lost)
  redis.call('HSET', KEYS[1], 'removed:' .. partition, string.format('%.0f', added - length))
end
if rolled_back ~= '' then
  redis.call('HINCRBY', KEYS[1], 'rollbacks:' .. partition, 1)
  redis.call('HDEL', KEYS[1], 'removed:' .. partition)   -- of a log that is no more
end
redis.call('SADD', KEYS[3], group)
redis.call('HSET', KEYS[1], partition, ARGV[2] .. ':' .. member .. '|' .. offset .. '|' .. string.format('%.0f', count))
redis.pcall('XGROUP', 'CREATE', KEYS[2], group, offset, 'ENTRIESREAD', count)
redis.pcall('XGROUP', 'SETID', KEYS[2], group, offset, 'ENTRIESREAD', count)
return {'OK', offset, string.format('%.0f', count), lost, rolled_back}
