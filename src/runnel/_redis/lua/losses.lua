#!lua flags=no-writes
-- Looks for entries that were removed before they were read: by a trim without regard for the processor, or by hand.
--
-- KEYS    the logs
-- ARGV    per log: cursor (id of the last entry read), number of entries of the log up to it
-- Answer  per log: how many entries behind the cursor were removed; 0 if none; -1 if the cursor is not of this log
-- Includes log.lua
local answers = {}
for i = 1, #KEYS do
  local lost = removed(describe(KEYS[i]), ARGV[2 * i - 1], tonumber(ARGV[2 * i]))
  answers[i] = lost or -1
end
return answers
