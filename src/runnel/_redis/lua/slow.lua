#!lua flags=allow-oom
-- Notes which events have been in progress for long, and since when by the server's clock.
--
-- KEYS    1 slow hash
-- ARGV    per partition: partition, token, id (empty: none any more), ms for which it has been in progress
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
