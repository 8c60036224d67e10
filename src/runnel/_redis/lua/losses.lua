#!lua flags=no-writes
-- Looks for entries that were removed before they were read: by a trim without regard for the processor, or by hand.
--
-- KEYS    the logs
-- ARGV    1 group (the processor's name in keys), then per log: cursor (id of the last entry read), number of entries
--         of the log up to it
-- Answer  per log: how many entries behind the cursor were removed; 0 if none; -1 if the cursor is not of this log,
--         or the processor has not acquired it: it has replaced another
-- Includes log.lua
local answers = {}
for i = 1, #KEYS do
  local known = has_group(KEYS[i], ARGV[1]) or has_group(KEYS[i], mark_of(ARGV[1]))
  answers[i] = known and removed(describe(KEYS[i]), ARGV[2 * i], tonumber(ARGV[2 * i + 1])) or -1
end
return answers
