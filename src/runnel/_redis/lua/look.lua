#!lua flags=no-writes
-- Looks at partitions of a stream, and at where a processor stands in them.
--
-- KEYS (one slot)  1 positions hash of the processor   2.. the log of each partition
-- ARGV             the partitions, in the order of their logs
-- Answer           per partition {position, lost, rollbacks, length, added, deleted, first, last, next}
--   position       as it is stored; empty: never acquired
--   lost           entries that were removed before they were processed, so far
--   rollbacks      how often Redis had lost what was processed
--   length         entries now; added: entries ever; deleted: id of the highest entry that was deleted by hand
--   first, last    id of the first entry there is, and of the last that was ever added; empty: none
--   next           id of the first entry behind the position; empty: none
-- Includes log.lua
local answers = {}
for i = 2, #KEYS do
  local partition = ARGV[i - 1]
  local stored, lost, rollbacks =
    unpack(redis.call('HMGET', KEYS[1], partition, 'lost:' .. partition, 'rollbacks:' .. partition))
  local log = describe(KEYS[i]) or {}
  local offset = stored and stored:match('^[^|]*|([^|]*)|') or '0-0'
  local behind = log['length'] and redis.call('XRANGE', KEYS[i], '(' .. offset, '+', 'COUNT', 1)[1]
  answers[i - 1] = {stored or '', tonumber(lost or 0), tonumber(rollbacks or 0), log['length'] or 0,
    log['entries-added'] or 0, log['max-deleted-entry-id'] or '0-0', log.first or '',
    log['last-generated-id'] or '', behind and behind[1] or ''}
end
return answers
