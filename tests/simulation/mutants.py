"""Ways to be wrong, each of which the schedules must find: in a script, or in the simulated member."""

from simulation.laboratory import Mutant

MUTANTS = {
    "commit without a look at the token": Mutant(
        "no commit below the highest token|a rollback is real", "commit", "if its_token ~= token then", "if false then"
    ),
    "commit without a look at the previous position": Mutant(
        "positions form a chain", "commit", "elseif its_offset ~= previous then", "elseif false then"
    ),
    "acquire that lets the previous owner commit": Mutant(
        "no commit below the highest token|a rollback is real",
        "acquire",
        "ARGV[2] .. ':' .. member .. '|' .. offset",
        "(stored and stored:match('^[^|]*') or ARGV[2] .. ':' .. member) .. '|' .. offset",
    ),
    "acquire with any token": Mutant(
        "tokens grow|one member per token",
        "acquire",
        "if tonumber(its_token) > token or (tonumber(its_token) == token and its_member ~= member) then",
        "if false then",
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
        "if not owner or not members[owner] or (revoked ~= '-1' and clock - tonumber(revoked) > grace) then",
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
    "the server's clock instead of the logical one": Mutant(
        "one owner at a time",
        "heartbeat",
        "local step = math.max(0, math.min(now - tonumber(group[1] or now), math.floor(session / 4)))",
        "local step = math.max(0, now - tonumber(group[1] or now))",
    ),
    "an assignment that shuffles": Mutant(
        "as few partitions as possible move",
        "heartbeat",
        "local into = member and member.has or free",
        "local into = free",
    ),
    "append that takes a late batch": Mutant(
        "events are in the order in which they were sent|each event is in the log once",
        "append",
        "elseif tonumber(sequence) < tonumber(last_sequence) then",
        "elseif false then",
    ),
    "append without a look at the sequence": Mutant(
        "each event is in the log once", "append", "if sequence == last_sequence then", "if false then"
    ),
    "a lease that is counted from the answer": Mutant(
        "one owner at a time", member=frozenset({"lease from the answer"})
    ),
    "a lease that revives after it has expired": Mutant(
        "one owner at a time|one member per token", member=frozenset({"lease that revives"})
    ),
    "an owner without a deadline": Mutant("one owner at a time", member=frozenset({"no deadline"})),
    "a read by XREADGROUP": Mutant(
        "nothing is skipped|the log is drained|events are processed in order", member=frozenset({"XREADGROUP"})
    ),
    "commit before the handler": Mutant("nothing is skipped", member=frozenset({"commit first"})),
    "a commit that is repeated with more in it": Mutant("a rollback is real", member=frozenset({"merge into a retry"})),
}
