#!lua flags=no-writes
-- Looks for entries that were removed before they were read: by a trim without regard for the processor, or by hand.
--
-- KEYS    the logs
-- ARGV    per log: cursor (id of the last entry read), number of entries of the log up to it
-- Answer  per log: how many entries behind the cursor were removed; 0 if none
local function before(a, b)
  local a_ms, a_seq = a:match('^(%d+)-(%d+)$')
  local b_ms, b_seq = b:match('^(%d+)-(%d+)$')
  a_ms, b_ms = tonumber(a_ms), tonumber(b_ms)
  return a_ms < b_ms or (a_ms == b_ms and tonumber(a_seq) < tonumber(b_seq))
end

local answers = {}
for i = 1, #KEYS do
  answers[i] = 0
  if redis.call('EXISTS', KEYS[i]) == 1 then
    local log, flat = {}, redis.call('XINFO', 'STREAM', KEYS[i])
    for n = 1, #flat, 2 do log[flat[n]] = flat[n + 1] end
    local first = log['first-entry'] and log['first-entry'][1]
    local cursor, count = ARGV[2 * i - 1], tonumber(ARGV[2 * i])
    if before(cursor, log['last-generated-id']) and (not first or before(cursor, first)) then
      answers[i] = math.max(0, log['entries-added'] - log['length'] - count)
    end
  end
end
return answers
