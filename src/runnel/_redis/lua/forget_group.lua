#!lua flags=allow-oom
-- Removes a group, unless a member of it lives: it is connected, or was heard of within its session.
--
-- KEYS (one slot)  1 group   2 members   3 targets   4 owners   5 parked   6 slow
-- Answer           the names of the members that live; if there are any, nothing was changed
local group = redis.call('HMGET', KEYS[1], 'now', 'clock')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local silent = math.max(0, now - tonumber(group[1] or 0))   -- since anybody was heard of
local alive, flat = {}, redis.call('HGETALL', KEYS[2])
for i = 1, #flat, 2 do
  local beat, session = flat[i + 1]:match('^%d+|(%d+)|(%d+)|')
  local age = silent + tonumber(group[2] or 0) - tonumber(beat)
  local channel = KEYS[1]:gsub(':group$', ':wake:') .. flat[i]
  if age < tonumber(session) or tonumber(redis.call('PUBSUB', 'SHARDNUMSUB', channel)[2]) > 0 then
    alive[#alive + 1] = flat[i]
  end
end
if #alive == 0 then redis.call('DEL', unpack(KEYS)) end
return alive
