#!lua flags=allow-oom
-- Notes for operators what takes long, and since when by the server's clock.
--
-- KEYS    1 slow hash
-- ARGV    per note: field, token, what (empty: nothing any more), ms for which it has been so
--         field 3:          partition 3; what: the id of the event that is in progress
--         field stalled:3:  the same; what: what it is doing instead of making progress
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, #ARGV, 4 do
  if ARGV[i + 2] == '' then
    redis.call('HDEL', KEYS[1], ARGV[i])
  else
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1] .. '|' .. ARGV[i + 2] .. '|' ..
      string.format('%.0f', now - tonumber(ARGV[i + 3])))
  end
end
return redis.status_reply('OK')
