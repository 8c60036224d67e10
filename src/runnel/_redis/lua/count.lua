#!lua flags=no-writes
-- Counts entries of a log, a bounded number at a time.
--
-- KEYS    1 log
-- ARGV    1 from (an id, exclusive)   2 to (an id, inclusive)   3 most
-- Answer  {number, id of the last one counted}; fewer than `most` means that there are no more
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], ARGV[2], 'COUNT', ARGV[3])
return {#entries, #entries > 0 and entries[#entries][1] or ARGV[1]}
