#!lua flags=no-writes
-- Says whether entries that were read are in their logs, or were: another server may answer now, which never had them.
--
-- KEYS    the logs
-- ARGV    per log: id of an entry
-- Answer  per log: 1 if it has it or had it, as far as that can be seen; else 0
-- Includes log.lua
local answers = {}
for i = 1, #KEYS do
  answers[i] = never_had(KEYS[i], ARGV[i]) and 0 or 1
end
return answers
