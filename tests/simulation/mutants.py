"""Ways to be wrong, each of which the schedules must find: in a script, or in the simulated member.

Those that take a long search stand beside the race that shows them, in ``test_races.py``.
"""

from simulation.laboratory import Mutant

MUTANTS = {
    "acquire that lets the previous owner commit": Mutant(
        "no commit below the highest token|a rollback is real",
        "acquire",
        "ARGV[2] .. ':' .. member .. '|' .. offset",
        "(stored and stored:match('^[^|]*') or ARGV[2] .. ':' .. member) .. '|' .. offset",
    ),
    "acquire that begins at the end": Mutant(
        "positions form a chain|the log is drained",
        "acquire",
        "offset, count = '0-0', added - length",
        "offset, count = last, added",
    ),
    "a grant without waiting for the release": Mutant(
        "one owner at a time",
        "heartbeat",
        "if not owner or (revoked ~= '-1' and clock - tonumber(revoked) > patience) then",
        "if true then",
    ),
    "a grant under the last token": Mutant(
        "one member per token|tokens grow",
        "heartbeat",
        "token = math.max(token + 1, now, floor + 1)",
        "token = math.max(token, floor + 1)",
    ),
    "the dead are never expired": Mutant(
        "every partition is owned|nothing is left over",
        "heartbeat",
        "if member.name ~= me and clock - member.beat > member.session then drop(member) end",
        "",
    ),
    "expired after half a session": Mutant(
        "one owner at a time",
        "heartbeat",
        "clock - member.beat > member.session then",
        "clock - member.beat > member.session / 2 then",
    ),
    "an assignment that shuffles": Mutant(
        "as few partitions as possible move",
        "heartbeat",
        "local into = member and member.has or free",
        "local into = free",
    ),
    "a pause that is no new epoch": Mutant(
        "whoever asks is told of a pause", "park", "redis.call('HSET', KEYS[1], 'epoch',", "tostring("
    ),
    "a pause that new owners are not told of": Mutant(
        "whoever asks is told of a pause", "heartbeat", "or parked['*'] and '2' or '0'", "or '0'"
    ),
    "append that takes a late batch": Mutant(
        "events are in the order in which they were sent|each event is in the log once|a rollback is real",
        "append",
        "elseif tonumber(sequence) < tonumber(last_sequence) then",
        "elseif false then",
    ),
    "append without a look at the sequence": Mutant(
        "each event is in the log once", "append", "if sequence == last_sequence then", "if false then"
    ),
    "a lease that does not end with an eviction": Mutant(
        "one owner at a time|one member per token", member=frozenset({"lease that does not end"})
    ),
    "a read by XREADGROUP": Mutant(
        "nothing is skipped|the log is drained|events are processed in order", member=frozenset({"XREADGROUP"})
    ),
    "commit before the handler": Mutant("nothing is skipped", member=frozenset({"commit first"})),
}
