#!lua flags=allow-oom
-- The group coordinator. One call per member and heartbeat does everything that a coordinator does: expire the dead,
-- assign the partitions, grant them with fencing tokens, ask for revocations. After Kafka's KIP-848.
--
-- KEYS (one slot)
--   1 group       hash    now, clock, epoch, token, due, joins, run, since, owned
--   2 members     hash    member -> joined|heartbeat|session|state|suspected      state: A active, D draining
--   3 targets     hash    partition -> member
--   4 owners      hash    partition -> member|token|revoked                       revoked: clock, or -1
--                         without a member: somebody deleted who it was, which was found at that clock
--   5 parked      hash    partition -> member|details   quarantined by that member, until it goes
--                         *         -> |details         paused by a person, until it is resumed
-- ARGV
--   1 op          join, rejoin (a join of who was a member and is not known any more), beat, drain (a beat of a member
--                 that wants to leave) or leave
--   2 member      its name
--   3 session     ms without a heartbeat after which the member is dead
--   4 join delay  ms to wait for further members before partitions move
--   5 grace       ms after which an ignored revocation is taken as done, but not before the owner's session
--   6 silence     ms without a heartbeat before a member without a connection is dead; so long a member that rejoins
--                 an empty group waits: the others may not know yet that what they own is void (1. FLUSHALL 2. a joins
--                 again and is granted everything 3. b goes on until its next heartbeat: boom)
--   7 partitions  how many there are
--   8 epoch       the last one the member has been told
--   9 settled     0 if it waits for grants or has revocations open: it wants a full answer
--  10 floor       tokens must be above it (found in a data slot after a lossy fail-over)
--  11 unheard     ms since the member has first asked what it is still waiting to be told; 0: every answer has arrived
--  12 groups      slot groups of the stream: partition p is in the group p mod groups
--  13.. releases  partition, token of what the member has handed back
-- Answer
--   {status, epoch, full, waiting, again, grants, revocations}
--   status        OK, or UNKNOWN: not a member; nothing is owned; join again
--   epoch         number of the assignment, @, and what is another for each run of the server: where one is lost, its
--                 number is given out anew (1. a is told 8@x  2. the server loses 8, and is at 7  3. 8 is made again, but
--                 another, and a is told that nothing has changed: boom)
--   full          1: grants and revocations are complete. 0: nothing has changed since the last full answer (to a beat)
--   waiting       number of partitions that will be ours when others have released them
--   again         ms after which the group needs a heartbeat, or -1
--   grants        partition, token, parked (0, 1 quarantined or 2 paused), flat
--   revocations   partition, token, flat
--
-- Time is a logical clock: it follows the server's, but never backwards, and at most a quarter of a session per call.
-- So neither a jump of the server's clock nor an outage, after which everybody is late, evicts anybody.
--
-- A heartbeat counts from when the member began to wait for an answer. One that can speak but not hear stops by itself
-- when its lease has run out; if its heartbeats counted as they arrive, its partitions would lie idle for ever.

local GROUP, MEMBERS, TARGETS, OWNERS, PARKED = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local op, me = ARGV[1], ARGV[2]
local session, join_delay, grace, silence = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local partitions, known_epoch, settled = tonumber(ARGV[7]), ARGV[8], ARGV[9] == '1'
local floor, unheard, slot_groups = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local SECOND_LOOK = 100     -- ms between the two looks at a missing connection
local text = function(number) return string.format('%.0f', number) end

local function pairs_of(key)
  local found, flat = {}, redis.call('HGETALL', key)
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end

-- 1. The members, in the order in which they joined, so that nothing here depends on the order of a hash.
local members, order, newest, longest = {}, {}, 0, session
for name, value in pairs(pairs_of(MEMBERS)) do
  local joined, beat, its_session, state, suspected = value:match('^(%d+)|(%d+)|(%d+)|(%a)|(-?%d+)$')
  local member = {name = name, joined = tonumber(joined), beat = tonumber(beat), session = tonumber(its_session),
                  state = state, suspected = tonumber(suspected)}
  members[name] = member
  order[#order + 1] = member
  newest = math.max(newest, member.beat)
  longest = math.max(longest, member.session)
end
table.sort(order, function(a, b) return a.joined < b.joined end)

-- 2. The clock. Where the group's hash was lost, it goes on from the newest heartbeat, the tokens from the highest that
--    an owner has, and the epoch from a second ahead: both may have been some ahead of the server's milliseconds.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local group = redis.call('HMGET', GROUP, 'now', 'clock', 'epoch', 'token', 'due', 'joins', 'run', 'since', 'owned')
local step = math.max(0, math.min(now - tonumber(group[1] or now), math.floor(session / 4)))
local clock = tonumber(group[2] or newest) + step
local epoch, token = tonumber(group[3] or 0), tonumber(group[4] or 0)
if not group[4] and #order > 0 then
  epoch = now + 1000
  for _, owner in pairs(pairs_of(OWNERS)) do token = math.max(token, tonumber(owner:match('|(%d+)|'))) end
end
local due, joins = tonumber(group[5] or clock), tonumber(group[6] or 0)   -- lost: as if an assignment had been due
local run, since = group[7] or '', tonumber(group[8] or -1)   -- since: when run changed; -1: never
local owned = tonumber(group[9] or (#order > 0 or redis.call('EXISTS', TARGETS) == 1) and partitions or 0)
if #order > 0 then joins = math.max(joins, order[#order].joined) end

local wake = {}
local gone = {}
local function drop(member)
  redis.call('HDEL', MEMBERS, member.name)
  members[member.name] = nil
  gone[member.name] = true
  for i, other in ipairs(order) do if other == member then table.remove(order, i) break end end
end

-- 3. Expire who was silent for a session. The caller is not silent: nobody has what it owns, so it may go on.
for i = #order, 1, -1 do
  local member = order[i]
  if member.name ~= me and clock - member.beat > member.session then drop(member) end
end

-- 4. Who has no connection any more and is silent as well is dead at a second look. After a restart or a fail-over
--    nobody is connected, so for half a session after a new run this proves nothing. A run ends also where a primary
--    becomes a replica, which gives it the replication id of another (1. a is the primary, then b for a while, at which
--    all are connected  2. b crashes, and a takes over again, without a restart  3. the first heartbeat finds nobody
--    else connected, and all are silent since the crash: boom). To ask costs 30 µs (INFO, Redis 7.0.15).
local again = -1
local function come_back(ms) if again < 0 or ms < again then again = math.max(1, math.ceil(ms)) end end
local channels, watched = {}, {}
for _, member in ipairs(order) do
  if member.name ~= me and #channels < 1000 then
    watched[#watched + 1] = member
    channels[#channels + 1] = GROUP:gsub(':group$', ':wake:') .. member.name
  end
end
local cut_off = {}
if #channels > 0 then
  local counts = redis.call('PUBSUB', 'SHARDNUMSUB', unpack(channels))
  for i, member in ipairs(watched) do
    if tonumber(counts[2 * i]) == 0 then cut_off[#cut_off + 1] = member end
  end
end
local server = redis.call('INFO', 'server', 'replication')
local this_run = (server:match('run_id:(%w+)') or '') .. ':' .. (server:match('master_replid:(%w+)') or '')
if this_run ~= run then
  if run ~= '' then since = clock end
  run = this_run
end
for _, member in ipairs(cut_off) do
  local proven = since < 0 or clock - since > session / 2
  if member.suspected < member.beat then member.suspected = clock end
  if proven and clock - member.suspected >= SECOND_LOOK and clock - member.beat >= silence then
    drop(member)
  else
    redis.call('HSET', MEMBERS, member.name, table.concat({text(member.joined), text(member.beat),
      text(member.session), member.state, text(member.suspected)}, '|'))
    come_back(math.max(SECOND_LOOK, silence - (clock - member.beat)))
  end
end

-- 5. The caller.
if op == 'leave' then
  if members[me] then drop(members[me]) end
elseif (op == 'join' or op == 'rejoin') and not members[me] and unheard <= session then
  joins = joins + 1
  members[me] = {name = me, joined = joins, state = 'A', beat = clock}
  order[#order + 1] = members[me]
  local others = 0
  for _, member in ipairs(order) do if member.name ~= me and member.state == 'A' then others = others + 1 end end
  if op == 'rejoin' and others == 0 then
    due = clock + silence
  elseif due < 0 then
    due = clock + (others > 0 and join_delay or 0)
  end
end
local self = members[me]
if self then
  if op == 'drain' and self.state ~= 'D' then self.state, due = 'D', clock end
  self.beat = math.max(self.beat, clock - unheard)
  redis.call('HSET', MEMBERS, me,
    table.concat({text(self.joined), text(self.beat), text(session), self.state, '-1'}, '|'))
end

-- 6. What is free again: released by the caller, or orphaned. But not whose owner was deleted by hand: that one may
--    act on its lease, and is told only by its next heartbeat. (1. b has to hand p over to c, and is in the middle of
--    an event  2. DEL of the owners, or of the members  3. nobody has p, so c is granted it: boom)
--    Without the group's hash it is not known how many had an owner; where there is no trace of a group, none had.
local function told() return text(epoch) .. '@' .. run:sub(1, 8) .. run:sub(-8) end
local targets, owners
local function load()
  if not targets then targets, owners = pairs_of(TARGETS), pairs_of(OWNERS) end
end
local function disown(field, its_token)
  owners[field] = '|' .. its_token .. '|' .. text(clock)
  redis.call('HSET', OWNERS, field, owners[field])
end
if redis.call('HLEN', OWNERS) < owned then
  load()
  for partition = 0, partitions - 1 do
    if not owners[text(partition)] then disown(text(partition), '0') end
  end
  epoch = math.max(epoch + 1, now)     -- so that whoever had one of them is told
  for name in pairs(members) do wake[name] = true end
end
for i = 13, #ARGV, 2 do
  load()
  local partition = ARGV[i]
  if owners[partition] and owners[partition]:match('^(.-|%d+)|') == me .. '|' .. ARGV[i + 1] then
    redis.call('HDEL', OWNERS, partition)
    owners[partition] = nil
    wake[targets[partition] or ''] = true
  end
end
if next(gone) then
  load()
  for partition, owner in pairs(owners) do
    if gone[owner:match('^(.-)|')] then
      redis.call('HDEL', OWNERS, partition)
      owners[partition] = nil
      wake[targets[partition] or ''] = true     -- who was promised it before, which the assignment will not change
    end
  end
  for partition, entry in pairs(pairs_of(PARKED)) do
    if gone[entry:match('^(.-)|')] then redis.call('HDEL', PARKED, partition) end
  end
  due = clock
end

-- 7. The assignment: as `assign` in _core/assignment.py, step by step.
local active = {}
for _, member in ipairs(order) do if member.state == 'A' then active[#active + 1] = member end end
if due < 0 and #active > 0 and redis.call('HLEN', TARGETS) < partitions then due = clock end
if due >= 0 and clock >= due then
  due = -1
  if #active > 0 then
    load()
    local free = {}
    for rank, member in ipairs(active) do member.has, member.rank = {}, rank end
    for group = 0, slot_groups - 1 do      -- in their order, so that neighbours are of one group
      for partition = group, partitions - 1, slot_groups do
        local member = members[targets[tostring(partition)] or '']
        local into = member and member.has or free
        into[#into + 1] = partition
      end
    end
    table.sort(active, function(a, b)
      if #a.has ~= #b.has then return #a.has > #b.has end
      return a.rank < b.rank
    end)
    local quota, extra = math.floor(partitions / #active), partitions % #active
    for rank, member in ipairs(active) do
      member.quota = quota + (rank <= extra and 1 or 0)
    end
    for _, member in ipairs(active) do
      while #member.has > member.quota do free[#free + 1] = table.remove(member.has) end
    end
    for _, member in ipairs(active) do
      while #member.has < member.quota do
        local partition = table.remove(free)
        member.has[#member.has + 1] = partition
        local field = tostring(partition)
        wake[targets[field] or ''], wake[member.name] = true, true
        targets[field] = member.name
        redis.call('HSET', TARGETS, field, member.name)
      end
    end
    epoch = math.max(epoch + 1, now)
  end
elseif due >= 0 then
  come_back(due - clock)
end

-- 8. Grants and revocations for the caller.
local grants, revocations, waiting, full = {}, {}, 0, 0
if self and (op ~= 'beat' or known_epoch ~= told() or not settled or redis.call('HLEN', OWNERS) < partitions) then
  load()
  full = 1
  local parked = redis.call('HLEN', PARKED) > 0 and pairs_of(PARKED) or {}
  local function grant(field, its_token)
    grants[#grants + 1] = field
    grants[#grants + 1] = its_token
    local mark = parked[field]          -- of a member, unless the members were lost
    grants[#grants + 1] = mark and members[mark:match('^(.-)|')] and '1' or parked['*'] and '2' or '0'
  end
  for partition = 0, partitions - 1 do
    local field = tostring(partition)
    local owner, its_token, revoked = (owners[field] or ''):match('^(.-)|(%d+)|(-?%d+)$')
    local mine = targets[field] == me and self.state == 'A'
    if owner == me and mine then
      if revoked ~= '-1' then redis.call('HSET', OWNERS, field, me .. '|' .. its_token .. '|-1') end
      grant(field, its_token)
    elseif owner == me then
      if revoked == '-1' then redis.call('HSET', OWNERS, field, me .. '|' .. its_token .. '|' .. text(clock)) end
      revocations[#revocations + 1] = field
      revocations[#revocations + 1] = its_token
    elseif mine then
      local holder = members[owner]
      if owner and owner ~= '' and not holder then
        disown(field, its_token)
        owner, revoked = '', text(clock)
      end
      -- Who has not heard of its revocation acts on its lease, which a session outlasts, however short the grace is.
      local patience = holder and math.max(grace, holder.session) or longest
      if not owner or (revoked ~= '-1' and clock - tonumber(revoked) > patience) then
        token = math.max(token + 1, now, floor + 1)
        redis.call('HSET', OWNERS, field, me .. '|' .. text(token) .. '|-1')
        if owner then wake[owner] = true end
        grant(field, text(token))
      else
        waiting = waiting + 1
      end
    end
  end
end

redis.call('HSET', GROUP, 'now', now, 'clock', text(clock), 'epoch', text(epoch), 'token', text(token),
  'due', text(due), 'joins', text(joins), 'run', run, 'since', text(since),
  'owned', redis.call('HLEN', OWNERS))
for name in pairs(wake) do
  if name ~= me and members[name] then
    redis.call('SPUBLISH', GROUP:gsub(':group$', ':wake:') .. name, 'assignment')
  end
end
return {(self or op == 'leave') and 'OK' or 'UNKNOWN', told(), full, waiting, again, grants, revocations}
