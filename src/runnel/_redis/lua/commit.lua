#!lua flags=allow-oom
-- Moves the positions of several partitions, each by a fenced compare-and-set, and mirrors them into the consumer group.
--
-- KEYS (one slot)  1 positions hash of the processor   2.. the log of each partition
-- ARGV             1 group, then per partition: partition, token (number:member), previous offset, offset, count
-- Answer           per partition {status, stored offset}
--   OK         moved
--   DUP        this very commit was applied before: a retry after a lost reply
--   FENCED     a newer owner exists; nothing was changed
--   RESET      somebody has moved the position; nothing was changed; acquire again. (|reset behind a position: moved;
--              |taken: and acquired by who had it, perhaps by a call that arrived late, so that it is told once more)
--   REPLACED   the log is gone, or is another one than the position was taken from; nothing was changed; acquire again
--   ROLLBACK   Redis has lost our last commit, or all of the positions, or the very entries that were processed: they
--              were read from a primary that had lost a fail-over and did not know it yet, and ids behind them are
--              given out anew, perhaps below theirs; nothing was changed; acquire again
--              (it is counted beside the position, for operators: rollbacks:<partition>)
-- Includes log.lua
local answers = {}
for i = 2, #KEYS do
  local at = 2 + (i - 2) * 5
  local partition, token, previous, offset, count = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local stored = redis.call('HGET', KEYS[1], partition)
  if not stored then
    redis.call('HINCRBY', KEYS[1], 'rollbacks:' .. partition, 1)
    answers[i - 1] = {'ROLLBACK', ''}
  else
    local its_token, its_offset, its_count, rest = stored:match('^([^|]*)|([^|]*)|(%d+)(.*)$')
    local status
    if its_token ~= token then
      local newer = tonumber(its_token:match('^%d+')) < tonumber(token:match('^%d+'))
      status = newer and 'ROLLBACK' or 'FENCED'   -- an older token than ours: that we acquired is lost
    elseif rest == '|reset' then
      status = 'RESET'
    elseif its_offset == offset and its_count == count then
      status = 'DUP'
      redis.call('HSET', KEYS[1], partition, stored)  -- so that a WAIT behind this call has something to wait for
    elseif its_offset ~= previous then
      status = rest == '|taken' and 'RESET' or 'ROLLBACK'
    elseif never_had(KEYS[i], offset, mark_of(ARGV[1])) then
      status = 'ROLLBACK'
    else
      local mirrored = redis.pcall('XGROUP', 'SETID', KEYS[i], ARGV[1], offset, 'ENTRIESREAD', count)
      status = 'OK'
      if mirrored.err then  -- the group was destroyed by hand, or with the log
        if has_group(KEYS[i], mark_of(ARGV[1])) then
          redis.call('XGROUP', 'CREATE', KEYS[i], ARGV[1], offset, 'ENTRIESREAD', count)
        else
          status = 'REPLACED'
        end
      end
      if status == 'OK' then
        redis.call('HSET', KEYS[1], partition, token .. '|' .. offset .. '|' .. count)
      end
    end
    if status == 'ROLLBACK' then redis.call('HINCRBY', KEYS[1], 'rollbacks:' .. partition, 1) end
    answers[i - 1] = {status, its_offset}
  end
end
return answers
