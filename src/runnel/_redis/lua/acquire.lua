#!lua flags=allow-oom
-- Begins an ownership in the data slot: from here on, the previous owner is fenced. Returns where to go on.
--
-- KEYS (one slot)  1 positions hash of the processor   2 log of the partition   3 set of registered processors
-- ARGV             1 partition   2 token   3 member   4 group (the processor's name in keys)
--                  5 token, 6 position   what this member has last committed here, and under which token; 0 and 0-0: nothing
-- Answer
--   {STALE, token}                             a higher token was seen here; nothing was changed
--   {OK, offset, count, lost, rolled_back}     offset: the position; count: entries of the log up to it
--     lost           entries that were removed before this processor had processed them; -1: an unknown number, since
--                    the log is not the one that the position was taken from, but one that has replaced it; or the
--                    position is gone, with its copy in the consumer group
--     rolled_back    a position that Redis has lost, with what lies behind it; else empty: the stored one, where it lay
--                    behind the end of the log; or what this member has committed, where nobody has acquired since, nor
--                    moved it (1. commit, release  2. another acquires  3. the server loses both, and the release)
--
-- Idempotent: the same token again gives the same answer, but for lost and rolled_back, which are reported once (what
-- this member has committed under the same token: by each call), and counted beside the position, for operators:
-- lost:<partition> (entries) and rollbacks:<partition> (times).
-- removed:<partition> says how many entries of the log had been removed when losses were counted last: they are counted
-- once, also if a member has noticed them while it ran and stopped before its position went past them.
-- Includes log.lua

local partition, token, member, group = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]

local known_token, known = tonumber(ARGV[5]), ARGV[6]

local offset, count, taken = nil, nil, ''
local follows = false   -- whether what is stored came behind `known`: of a newer owner, or by hand
local stored = redis.call('HGET', KEYS[1], partition)
if stored then
  local its_token, its_member, its_offset, its_count, rest = stored:match('^(%d+):([^|]*)|([^|]*)|(%d+)(.*)$')
  if tonumber(its_token) > token or (tonumber(its_token) == token and its_member ~= member) then
    return {'STALE', its_token}
  end
  offset, count = its_offset, tonumber(its_count)
  follows = tonumber(its_token) > known_token or rest ~= ''
  -- This may be a repeated call that arrives late, behind a move by hand: the owner is still to be told of that.
  if rest ~= '' and tonumber(its_token) == token then taken = '|taken' end
end

local mirror, marked = has_group(KEYS[2], group), has_group(KEYS[2], mark_of(group))
if not marked then set_mark(KEYS[2], group) end
local log = describe(KEYS[2])
local last, added, length = log['last-generated-id'], log['entries-added'], log['length']
if not stored and mirror then  -- the positions are gone, but not their copy in the group
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[2])) do
    local one = named(flat)
    if one['name'] == group and one['entries-read'] then
      offset, count = one['last-delivered-id'], one['entries-read']
    end
  end
end

local lost, rolled_back, up_to = 0, '', 0
if not offset then                        -- new here: from the first entry there is
  offset, count = '0-0', added - length
  if marked then lost = nil end           -- or nothing is left that says where we were
elseif not mirror and not marked then     -- another log, also where the position fits it
  offset, count, lost = '0-0', added - length, nil
elseif before(last, offset) then          -- a read from behind the end would wait for ever
  rolled_back, offset, count = offset, last, added
else
  lost = removed(log, offset, count)
  local counted = math.max(count, tonumber(redis.call('HGET', KEYS[1], 'removed:' .. partition) or 0))
  up_to = count + (lost or 0)
  if processed_to_the_end(log, offset) then
    offset, count = last, added
  elseif lost ~= 0 then
    count = added - length
  end
  if lost then lost = math.max(0, up_to - counted) end
end

-- First of all: whoever may not do this has changed nothing.
redis.call('XGROUP', mirror and 'SETID' or 'CREATE', KEYS[2], group, offset, 'ENTRIESREAD', count)
if (lost or 0) > 0 then
  redis.call('HINCRBY', KEYS[1], 'lost:' .. partition, lost)
  redis.call('HSET', KEYS[1], 'removed:' .. partition, string.format('%.0f', up_to))
end
if rolled_back ~= '' or not lost then
  redis.call('HDEL', KEYS[1], 'removed:' .. partition)   -- of a log that is no more
end
if lost and not follows and before(rolled_back ~= '' and rolled_back or offset, known) then rolled_back = known end
if rolled_back ~= '' or not lost then redis.call('HINCRBY', KEYS[1], 'rollbacks:' .. partition, 1) end
redis.call('SADD', KEYS[3], group)
redis.call('HSET', KEYS[1], partition,
  ARGV[2] .. ':' .. member .. '|' .. offset .. '|' .. string.format('%.0f', count) .. taken)
return {'OK', offset, string.format('%.0f', count), lost or -1, rolled_back}
