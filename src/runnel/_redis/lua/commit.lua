#!lua flags=allow-oom
-- Moves the positions of several partitions, each by a fenced compare-and-set, and mirrors them into the consumer group.
--
-- KEYS (one slot)  1 positions hash of the processor   2.. the log of each partition
-- ARGV             1 group, then per partition: partition, token (number:member), previous offset, offset, count
-- Answer           per partition {status, stored offset}
--   OK         moved
--   DUP        this very commit was applied before: a retry after a lost reply
--   FENCED     a newer owner exists; nothing was changed
--   RESET      somebody has moved the position; nothing was changed; acquire again
--   ROLLBACK   Redis has lost our last commit, or all of the positions; nothing was changed; acquire again
--              (it is counted beside the position, for operators: rollbacks:<partition>)
local answers = {}
for i = 2, #KEYS do
  local at = 2 + (i - 2) * 5
  local partition, token, previous, offset, count = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local stored = redis.call('HGET', KEYS[1], partition)
  if not stored then
    redis.call('HINCRBY', KEYS[1], 'rollbacks:' .. partition, 1)
    answers[i - 1] = {'ROLLBACK', ''}
  else
    local its_token, its_offset, rest = stored:match('^([^|]*)|([^|]*)|%d+(.*)$')
    local status
    if its_token ~= token then
      local newer = tonumber(its_token:match('^%d+')) < tonumber(token:match('^%d+'))
      status = newer and 'ROLLBACK' or 'FENCED'   -- an older token than ours: that we acquired is lost
    elseif rest == '|reset' then
      status = 'RESET'
    elseif its_offset == offset then
      status = 'DUP'
    elseif its_offset ~= previous then
      status = 'ROLLBACK'
    else
      status = 'OK'
      redis.call('HSET', KEYS[1], partition, token .. '|' .. offset .. '|' .. count)
      local mirrored = redis.pcall('XGROUP', 'SETID', KEYS[i], ARGV[1], offset, 'ENTRIESREAD', count)
      if mirrored.err then redis.pcall('XGROUP', 'CREATE', KEYS[i], ARGV[1], offset, 'ENTRIESREAD', count) end
    end
    if status == 'ROLLBACK' then redis.call('HINCRBY', KEYS[1], 'rollbacks:' .. partition, 1) end
    answers[i - 1] = {status, its_offset}
  end
end
return answers
