"""Known races, step by step: each was found once, by real processes or by a schedule, and must not come back.

Members, producers and clock are those of ``simulation``; the scripts and the server are real. Each race is also played
with what mended it taken away, and must then fail.
"""

from collections.abc import Callable

import pytest

from simulation.calls import Reply
from simulation.judge import Violation, must
from simulation.laboratory import CORRECT, Laboratory, Mutant
from simulation.members import Member
from simulation.owners import PROCESSOR
from simulation.seats import JOIN_DELAY, PARTITIONS, SESSION
from simulation.world import HOUR, World

ALL = list(range(PARTITIONS))


def who_speaks_but_does_not_hear_loses_its_partitions(world: World) -> None:
    # 1. all answers to `deaf` are lost  2. its lease runs out, so it stops  3. its heartbeats still arrive, and would
    # keep its partitions for it
    deaf = world.join()
    world.everybody(2)
    other = world.join()
    world.everybody(4)
    for _ in range(4 * SESSION // 100):
        deaf.beat(Reply.LOST)
        other.beat()
        other.work()
        world.tick(100)
    must(sorted(other.shares) == ALL, "every partition is owned by who can work", str(other.shares))


def after_one_gap_the_losses_of_other_partitions_are_noticed_too(world: World) -> None:
    # 1. the server loses appends to two partitions  2. the producer finds that out at one of them  3. and at the other
    producer = world.producers[0]
    world.damage.remember()
    for partition in (0, 1):
        producer.send(partition, 2)
    world.damage.roll_back()
    for partition in (0, 1):
        producer.send(partition)
    reports = {p: world.judge.reports[p] for p in (0, 1)}
    must(all(reports.values()), "nothing is lost in silence", str(reports))
    world.judge.check()


def an_append_that_was_given_up_does_not_arrive_behind_later_events(world: World) -> None:
    # 1. an append is held up in the network  2. the producer gives it up  3. it sends later events of the same keys
    # 4. the first append arrives
    producer = world.producers[0]
    producer.send(0, 2)
    producer.send(0, 2, Reply.LATE)
    producer.give_up()
    producer.send(0, 2)
    world.arrive()
    world.judge.check()
    must(len(world.judge.logs[0]) == 4, "events are in the order in which they were sent", str(world.judge.logs[0]))


def tokens_are_not_given_out_twice_when_the_group_is_lost(world: World) -> None:
    # 1. more tokens are given out in a millisecond than it has  2. the group's hash is lost, and the last token with it
    # 3. within the same millisecond the next is given out
    first = world.join()
    first.work()
    highest = max(share.token for share in first.shares.values())
    world.lab.ask("DEL", world.control.group)
    released = first.shares[2]
    first.forget(released)
    first.releases.append((2, released.token))
    first.beat()
    must(first.shares[2].token > highest, "tokens grow", f"{first.shares[2]} after {highest}")


def a_restart_in_the_first_millisecond_of_a_group_evicts_nobody(world: World) -> None:
    # 1. the logical clock of a new group is at 0  2. the server restarts, which is noticed at 0 as well
    # 3. nobody is connected, and two looks at that prove nothing for half a session
    first = world.join()
    second = world.join()
    world.restart()
    first.beat()
    for _ in range(4):
        world.tick(100)
        first.beat()
    members = world.lab.ask("HKEYS", world.control.members)
    must(second.name.encode() in members, "after a restart nobody is dead for want of a connection", str(members))


def a_primary_that_was_one_before_evicts_nobody(world: World) -> None:
    # 1. another primary takes over, and for as long as it is there, nobody beats  2. the first one takes over again,
    # which has not been started anew  3. nobody is connected, and all were silent for a while
    first = world.join()
    second = world.join()
    world.everybody(2)
    world.fail_over(back=False)
    world.tick(SESSION // 2)
    world.fail_over(back=True)
    for _ in range(4):
        world.tick(100)
        first.beat()
    members = world.lab.ask("HKEYS", world.control.members)
    must(second.name.encode() in members, "after a fail-over nobody is dead for want of a connection", str(members))


def _frozen_and_replaced(world: World, first: Member) -> Member:
    first.freeze(True)
    second = world.join()
    for _ in range(12):
        world.tick(100)
        second.beat()
        second.work()
    return second


def an_answer_that_was_long_on_its_way_does_not_prolong_a_lease(world: World) -> None:
    # 1. a heartbeat is answered, and its member frozen before it hears that  2. the session ends, and the partitions
    # go to another  3. the member wakes up, hears the answer, and goes on with what it had read
    first = world.join()
    world.producers[0].send(0, 3)
    first.work()
    first.beat(Reply.HELD)
    second = _frozen_and_replaced(world, first)
    first.freeze(False)
    first.beat()
    first.step("finish", Reply.HEARD)
    first.step("take", Reply.HEARD)
    second.step("take", Reply.HEARD)


def a_lease_does_not_revive_with_the_next_seat(world: World) -> None:
    # 1. a member is frozen, and evicted; its partitions go to another  2. it wakes up: its heartbeat thread hears that,
    # joins again, and is answered  3. before the worker's loop hears of either, it hands out the next event
    first = world.join()
    world.producers[0].send(0, 3)
    first.work()
    _frozen_and_replaced(world, first)
    first.deafen(True)
    first.freeze(False)
    first.beat()
    first.beat()
    first.step("finish", Reply.HEARD)
    first.step("take", Reply.HEARD)


def what_is_taken_from_who_is_blocked_is_not_begun(world: World) -> None:
    # 1. a handler blocks the loop, and heartbeats go on  2. a partition is revoked, and a session later taken as handed
    # back  3. the handler ends, and before the loop hears of that, it hands out the next event
    first = world.join()
    for partition in ALL:
        world.producers[0].send(partition, 3)
    first.work()
    first.block(True)
    second = world.join()
    for _ in range(2 * SESSION // 100):
        world.tick(100)
        first.beat()
        second.beat()
        second.work()
    must(second.shares, "what is not handed over is taken", str(first.shares))
    first.deafen(True)
    first.block(False)
    first.step("finish", Reply.HEARD)
    first.step("take", Reply.HEARD)


def an_acquire_that_was_held_up_does_not_take_the_partition_back(world: World) -> None:
    # 1. an acquire is held up in the network  2. its member is given up, and another acquires  3. it arrives
    first = world.join()
    first.step("acquire", Reply.LATE)
    first.crash()
    second = world.join()
    for _ in range(12):
        world.tick(100)
        second.beat()
        second.work()
    while world.wire:
        world.arrive()
    world.judge.check()


def who_comes_back_too_late_cannot_commit(world: World) -> None:
    # 1. an owner is frozen with an event processed and not committed  2. another acquires  3. the first commits
    first = world.join()
    world.producers[0].send(0, 2)
    first.work()
    first.step("finish", Reply.HEARD)
    first.freeze(True)
    second = world.join()
    for _ in range(12):
        world.tick(100)
        second.beat()
        second.step("acquire", Reply.HEARD)
    first.freeze(False)
    first.commit()
    world.judge.check()


def a_commit_that_was_held_up_does_not_set_the_position_back(world: World) -> None:
    # 1. a commit is held up, and repeated  2. the next one is answered  3. the first arrives
    member = world.join()
    world.producers[0].send(0, 3)
    member.work()
    member.step("finish", Reply.HEARD)
    member.commit(Reply.LATE)
    member.commit()
    member.work()
    member.step("finish", Reply.HEARD)
    member.commit()
    world.arrive()
    world.judge.check()


def what_is_done_while_a_commit_is_repeated_goes_with_the_next_one(world: World) -> None:
    # 1. the answer to a commit is lost  2. more events are processed  3. the commit is repeated, as it was
    member = world.join()
    world.producers[0].send(0, 3)
    member.work()
    member.step("finish", Reply.HEARD)
    member.commit(Reply.LOST)
    member.step("take", Reply.HEARD)
    member.step("finish", Reply.HEARD)
    member.commit()


def who_cannot_renew_its_lease_stops_by_itself(world: World) -> None:
    # 1. no heartbeat of an owner gets through any more  2. its partitions go to another  3. it has events left
    first = world.join()
    world.producers[0].send(0, 3)
    first.work()
    first.step("finish", Reply.HEARD)
    second = world.join()
    for _ in range(12):
        world.tick(100)
        second.beat()
        second.work()
    first.step("take", Reply.HEARD)
    second.step("take", Reply.HEARD)


def a_clock_that_jumps_evicts_nobody(world: World) -> None:
    # 1. two share the partitions  2. the server's clock is set an hour ahead  3. one of them beats, the other is due
    first = world.join()
    second = world.join()
    world.everybody(6)
    for partition in ALL:
        world.producers[0].send(partition, 3)
    for member in (first, second):
        member.beat()
        member.work()
    world.jump(HOUR)
    second.beat()
    second.beat()
    second.work()
    second.work()


def who_comes_back_to_an_empty_group_waits_for_the_others(world: World) -> None:
    # 1. everything is deleted  2. one of two owners finds that out, joins again and has the group for itself
    # 3. it is granted what the other goes on processing until its next heartbeat
    first = world.join()
    second = world.join()
    world.everybody(6)
    world.damage.flush()
    first.beat()
    first.beat()
    must(not first.shares, "one owner at a time", f"{first.shares} beside {second.shares}")
    second.beat()
    world.everybody(6)
    must(sorted((*first.shares, *second.shares)) == ALL, "every partition is owned", str(first.shares))


def a_revocation_that_was_not_heard_waits_for_the_lease(world: World) -> None:
    # 1. an owner's lease is renewed  2. it is asked to hand over, and does not hear that  3. the grace period is over,
    # the lease is not
    owner = world.join()
    world.everybody(2)
    for partition in ALL:
        world.producers[0].send(partition, 2)
    owner.work()
    owner.beat()
    other = world.join()
    world.tick(JOIN_DELAY + 1)
    other.beat()
    owner.beat(Reply.HELD)
    while world.seconds < owner.lease.deadline - 0.02:
        world.tick(10)
        other.beat()
        other.work()
    must(not other.shares, "one owner at a time", f"{other.shares} beside {owner.shares}")


def what_is_handed_over_when_its_owner_is_deleted_waits_for_the_lease(world: World) -> None:
    _deleted_while_handing_over(world, world.control.owners)


def what_is_handed_over_when_the_members_are_deleted_waits_for_the_lease(world: World) -> None:
    _deleted_while_handing_over(world, world.control.members)


def _deleted_while_handing_over(world: World, key: str) -> None:
    # 1. an owner is to hand over, and is in the middle of an event  2. somebody deletes who it is
    # 3. the next one finds the partition without an owner
    # 4. the old one has a lease, and hears of nothing until its next heartbeat
    owner = world.join()
    world.everybody(2)
    for partition in ALL:
        world.producers[0].send(partition, 2)
    owner.step("read", Reply.HEARD)
    for share in owner.shares.values():
        owner.take(share)
    other = world.join()
    world.tick(JOIN_DELAY + 1)
    other.beat()
    owner.beat()
    world.damage.delete(key)
    while world.seconds < owner.lease.deadline - 0.02:
        world.tick(10)
        other.beat()
        other.work()
    must(not other.shares, "one owner at a time", f"{other.shares} beside {owner.shares}")


def an_acquire_that_was_held_up_does_not_hide_a_move_by_hand(world: World) -> None:
    # 1. a position is moved by hand, and an acquire is held up, and repeated  2. it is moved once more  3. the first
    # acquire arrives, and takes away the mark  4. the owner commits behind the position that it knows
    member = world.join()
    world.producers[0].send(0, 4)
    member.work(events=2)
    world.damage.reset_to(0, end=False)
    member.commit()
    member.step("finish", Reply.HEARD)
    member.step("acquire", Reply.LATE)
    member.step("acquire", Reply.HEARD)
    member.work()
    member.step("finish", Reply.HEARD)
    world.damage.reset_to(0, end=True)
    world.arrive()
    member.commit()
    world.everybody(2)
    world.judge.check()


def who_is_fenced_by_a_token_that_nobody_has_is_granted_another(world: World) -> None:
    # 1. an acquire is held up  2. everything is deleted, and the server's clock was set back  3. its member is granted
    # the partition again, with a lower token  4. the first acquire arrives  5. the next commit is refused
    member = world.join()
    member.step("acquire", Reply.LATE)
    world.jump(-HOUR)
    world.damage.flush()
    world.everybody(8)
    must(sorted(member.shares) == ALL, "every partition is owned", str(member.shares))
    while world.wire:
        world.arrive()
    for partition in ALL:
        world.producers[0].send(partition, 2)
    world.everybody(8)
    must(sorted(member.shares) == ALL, "every partition is owned", str(member.shares))


def what_was_handed_over_and_comes_back_with_a_rollback_is_told(world: World) -> None:
    # 1. an owner commits, and hands over  2. the server loses both, and who has taken over  3. the partition is its own
    # again, under the same token, with a new feed
    first = world.join()
    world.producers[0].send(2, 3)
    first.work()
    world.damage.remember()
    for _ in range(3):
        first.work()
    token = first.shares[2].token
    second = world.join()
    world.everybody(6)
    must(2 in second.shares and 2 not in first.shares, "it is handed over", f"{first.shares}, {second.shares}")
    world.damage.roll_back()
    first.beat()
    must(first.shares[2].token == token, "it comes back", str(first.shares))
    first.step("acquire", Reply.HEARD)
    must(world.judge.reports[2], "who goes on below what it had committed says so", str(first.shares[2]))


def an_assignment_that_was_lost_is_not_taken_for_the_next_one(world: World) -> None:
    # 1. the server's clock was set back, so assignments are numbered one by one  2. a member is told of one  3. the
    # server loses it, and it is made anew: the same number, but for another member
    first = world.join()
    second = world.join()
    world.everybody(4)
    world.jump(-HOUR)
    world.damage.remember()
    second.connect(False)
    for _ in range(3 * SESSION // 100):
        world.tick(100)
        first.beat()
    must(sorted(first.shares) == ALL, "every partition is owned", str(first.shares))
    epoch = first.epoch
    world.damage.roll_back()
    second.connect(True)
    second.beat()
    world.join()
    world.tick(JOIN_DELAY + 1)
    second.beat()
    must(second.epoch.partition("@")[0] == epoch.partition("@")[0], "it has the same number", second.epoch)
    world.everybody(8)
    owned = sorted(p for member in world.alive for p in member.shares)
    must(owned == ALL, "every partition is owned once", str(owned))


def a_log_that_took_the_place_of_another_is_told_though_it_fits(world: World) -> None:
    # 1. a log is deleted  2. as many entries of the next one are removed as had been processed of the first
    member = world.join()
    world.producers[0].send(2, 3)
    world.everybody(4)
    member.leave()
    world.everybody(2)
    world.damage.delete(world.log(2))
    world.tick(10)
    world.producers[0].send(2, 4)
    world.damage.trim(2, 1)
    world.join()


def _deleted_behind_its_first_event(world: World) -> Member:
    member = world.join()
    world.producers[0].send(2, 1)
    _processes_one(member)
    world.damage.delete(world.log(2))
    return member


def _processes_one(member: Member) -> None:
    member.work()
    member.step("finish", Reply.HEARD)
    member.commit()


def a_log_that_gives_out_an_id_again_is_told_from_the_one_before(world: World) -> None:
    # 1. a log is deleted, and the clock is where it was  2. the next one begins with the id of the position
    member = _deleted_behind_its_first_event(world)
    world.producers[0].send(2, 2)
    _processes_one(member)


def a_log_that_gives_out_no_more_than_the_last_id_is_told_while_it_rests(world: World) -> None:
    # as above, but there is nothing behind that id, and so nothing to be committed
    _deleted_behind_its_first_event(world)
    world.producers[0].send(2, 1)
    world.look_for_losses()
    world.everybody(4)
    undone = set(world.judge.logs[2].values()) - world.judge.done
    must(not undone, "what is there is processed", str(undone))


def a_group_that_is_destroyed_by_hand_is_no_loss(world: World) -> None:
    # 1. an owner has committed, and hands over  2. somebody destroys the consumer group  3. the next one acquires
    world.join()
    world.producers[0].send(2, 3)
    world.everybody(4)
    world.damage.ungroup(2)
    world.join()
    world.everybody(8)
    world.producers[0].send(2, 1)
    world.damage.ungroup(2)


def what_was_lost_is_told_where_nothing_says_what_was_processed(world: World) -> None:
    # 1. somebody deletes the positions, and the consumer group that has them as well  2. entries are removed unread
    member = world.join()
    member.work()
    member.leave()
    world.everybody(2)
    world.producers[0].send(2, 3)
    world.damage.ungroup(2)
    world.damage.delete(world.keys.positions(0, PROCESSOR))
    world.damage.trim(2, 1)
    world.join()


def what_was_read_ahead_and_is_removed_is_counted_when_the_owner_ends(world: World) -> None:
    # 1. an owner has read ahead  2. what it has and what is behind that is removed  3. it looks, and ends
    member = world.join()
    world.producers[0].send(2, 12)
    member.work()
    world.damage.trim(2, 1)
    world.look_for_losses()
    member.leave()
    member.step("finish", Reply.HEARD)
    member.commit()
    world.join()


Race = Callable[[World], None]
RACES: list[tuple[Race, Mutant]] = [
    (
        an_assignment_that_was_lost_is_not_taken_for_the_next_one,
        Mutant("every partition is owned once", "heartbeat", ".. '@' .. run:sub(1, 8) .. run:sub(-8)", ""),
    ),
    (
        who_speaks_but_does_not_hear_loses_its_partitions,
        Mutant(
            "every partition is owned",
            "heartbeat",
            "self.beat = math.max(self.beat, clock - unheard)",
            "self.beat = clock",
        ),
    ),
    (
        after_one_gap_the_losses_of_other_partitions_are_noticed_too,
        Mutant("nothing is lost in silence", member=frozenset({"new name after a gap"})),
    ),
    (
        an_append_that_was_given_up_does_not_arrive_behind_later_events,
        Mutant("events are in the order in which they were sent", member=frozenset({"new name after giving up"})),
    ),
    (
        tokens_are_not_given_out_twice_when_the_group_is_lost,
        Mutant(
            "tokens grow",
            "heartbeat",
            "token = math.max(token, tonumber(owner:match('|(%d+)|')))",
            "token = token",
        ),
    ),
    (
        a_restart_in_the_first_millisecond_of_a_group_evicts_nobody,
        Mutant(
            "after a restart nobody is dead", "heartbeat", "local proven = since < 0 or", "local proven = since <= 0 or"
        ),
    ),
    (
        a_primary_that_was_one_before_evicts_nobody,
        Mutant("after a fail-over nobody is dead", "heartbeat", "(server:match('master_replid:(%w+)') or '')", "''"),
    ),
    (
        an_answer_that_was_long_on_its_way_does_not_prolong_a_lease,
        Mutant("one owner at a time", member=frozenset({"lease from the answer"})),
    ),
    (
        a_lease_does_not_revive_with_the_next_seat,
        Mutant("one owner at a time", member=frozenset({"lease that revives"})),
    ),
    (
        what_is_taken_from_who_is_blocked_is_not_begun,
        Mutant("one owner at a time", member=frozenset({"lease without the loop"})),
    ),
    (
        an_acquire_that_was_held_up_does_not_take_the_partition_back,
        Mutant(
            "tokens grow",
            "acquire",
            "if tonumber(its_token) > token or (tonumber(its_token) == token and its_member ~= member) then",
            "if false then",
        ),
    ),
    (
        who_comes_back_too_late_cannot_commit,
        Mutant("no commit below the highest token", "commit", "if its_token ~= token then", "if false then"),
    ),
    (
        a_commit_that_was_held_up_does_not_set_the_position_back,
        Mutant("positions form a chain", "commit", "elseif its_offset ~= previous then", "elseif false then"),
    ),
    (
        what_is_done_while_a_commit_is_repeated_goes_with_the_next_one,
        Mutant("a rollback is real", member=frozenset({"merge into a retry"})),
    ),
    (who_cannot_renew_its_lease_stops_by_itself, Mutant("one owner at a time", member=frozenset({"no deadline"}))),
    (
        a_clock_that_jumps_evicts_nobody,
        Mutant(
            "one owner at a time",
            "heartbeat",
            "local step = math.max(0, math.min(now - tonumber(group[1] or now), math.floor(session / 4)))",
            "local step = math.max(0, now - tonumber(group[1] or now))",
        ),
    ),
    (
        a_revocation_that_was_not_heard_waits_for_the_lease,
        Mutant("one owner at a time", "heartbeat", "math.max(grace, holder.session)", "grace"),
    ),
    (
        what_is_handed_over_when_its_owner_is_deleted_waits_for_the_lease,
        Mutant("one owner at a time", "heartbeat", "if redis.call('HLEN', OWNERS) < owned then", "if false then"),
    ),
    (
        what_is_handed_over_when_the_members_are_deleted_waits_for_the_lease,
        Mutant(
            "one owner at a time",
            "heartbeat",
            "if not owner or (revoked",
            "if not holder or (revoked",
        ),
    ),
    (
        an_acquire_that_was_held_up_does_not_hide_a_move_by_hand,
        Mutant("a rollback is real", "commit", "rest == '|taken' and 'RESET' or 'ROLLBACK'", "'ROLLBACK'"),
    ),
    (
        who_is_fenced_by_a_token_that_nobody_has_is_granted_another,
        Mutant("every partition is owned", member=frozenset({"fenced without a word"})),
    ),
    (
        what_was_handed_over_and_comes_back_with_a_rollback_is_told,
        Mutant("who goes on below what it had committed says so", member=frozenset({"forgets what it committed"})),
    ),
    (
        a_log_that_took_the_place_of_another_is_told_though_it_fits,
        Mutant(
            "nothing is lost in silence", "acquire", "elseif not mirror and not marked then", "elseif count == 0 then"
        ),
    ),
    (
        a_log_that_gives_out_an_id_again_is_told_from_the_one_before,
        Mutant(
            "a position is one of its log", "commit", "if has_group(KEYS[i], mark_of(ARGV[1])) then", "if true then"
        ),
    ),
    (
        a_log_that_gives_out_no_more_than_the_last_id_is_told_while_it_rests,
        Mutant("what is there is processed", "losses", "known and removed(", "removed("),
    ),
    (
        a_group_that_is_destroyed_by_hand_is_no_loss,
        Mutant("a rollback is real", "acquire", "elseif not mirror and not marked then", "elseif not mirror then"),
    ),
    (
        what_was_lost_is_told_where_nothing_says_what_was_processed,
        Mutant("nothing is lost in silence", "acquire", "if marked then lost = nil end", ""),
    ),
    (
        what_was_read_ahead_and_is_removed_is_counted_when_the_owner_ends,
        Mutant("what is lost is counted", member=frozenset({"counts what it has read"})),
    ),
    (
        who_comes_back_to_an_empty_group_waits_for_the_others,
        Mutant("one owner at a time", "heartbeat", "    due = clock + silence\n", "    due = clock\n"),
    ),
]


def play(race: Race, lab: Laboratory, mutant: Mutant) -> None:
    world = World(lab, mutant)
    try:
        race(world)
        world.heal()
    finally:
        world.close()


@pytest.mark.parametrize("race", [race for race, _ in RACES], ids=lambda race: race.__name__)
def test_a_known_race_does_no_harm(lab: Laboratory, race: Race) -> None:
    play(race, lab, CORRECT)


@pytest.mark.parametrize(("race", "mutant"), RACES, ids=[race.__name__ for race, _ in RACES])
def test_a_known_race_is_found_where_it_is_not_mended(lab: Laboratory, race: Race, mutant: Mutant) -> None:
    with pytest.raises(Violation, match=mutant.breaks):
        play(race, lab, mutant)
