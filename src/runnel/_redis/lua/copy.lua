#!lua
-- Adds entries of a log on another server, under the ids that they have there; not those that are here already.
--
-- KEYS    1 log
-- ARGV    per entry: id, number of arguments, field, value, ...
-- Includes log.lua
local log = describe(KEYS[1])
local last, at = log and log['last-generated-id'] or '0-0', 1
while at <= #ARGV do
  local id, count = ARGV[at], tonumber(ARGV[at + 1])
  if before(last, id) then redis.call('XADD', KEYS[1], id, unpack(ARGV, at + 2, at + 1 + count)) end
  at = at + 2 + count
end
return redis.status_reply('OK')
