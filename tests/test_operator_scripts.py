"""The scripts behind the commands of operators, and the counters that they read: each answer, on a real server."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from harness import eventually
from runnel._redis import scripts
from runnel._redis.groups import group_state, server_time
from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.link import Endpoint, Link, Listener
from runnel._redis.scripts import ALL, Acquired, Batch, Commit, CommitStatus, Look, Op, Seat, Stale

pytestmark = pytest.mark.anyio

PROCESSOR = "delays"
PAUSE = b'|{"since": "2026-01-31T12:00:00+00:00", "by": "ann"}'


@pytest.fixture
def keys(app_name: str) -> StreamKeys:
    return StreamKeys(app_name, "flights")


@pytest.fixture
def control(app_name: str) -> ControlKeys:
    return ControlKeys.of(app_name, "flights", PROCESSOR)


@pytest.fixture
async def listener(redis_url: str) -> AsyncIterator[Listener]:
    connection = Listener(Endpoint(redis_url))
    yield connection
    await connection.close()


def seat(control: ControlKeys, member: str = "m") -> Seat:
    return Seat(control, member, 2, session=10_000, join_delay=0, grace=10_000, silence=10_000)


async def fill(link: Link, keys: StreamKeys, count: int, *, partition: int = 0, sequence: int = 1) -> list[bytes]:
    """Append entries. Returns the ids of all there are."""
    batch = Batch(partition, "p", sequence, 0, [(b"data", b"%d" % n) for n in range(count)])
    await scripts.append(link, keys, 0, [batch], limit=0, trim=False, expiry=60_000)
    return [entry_id for entry_id, _ in await link.call("XRANGE", keys.log(partition), "-", "+")]


async def acquire(link: Link, keys: StreamKeys, token: int, partition: int = 0) -> Acquired:
    answer = await scripts.acquire(link, keys, PROCESSOR, partition, token, "m")
    assert not isinstance(answer, Stale)
    return answer


async def look(link: Link, keys: StreamKeys, partition: int = 0) -> Look:
    return (await scripts.look(link, keys, PROCESSOR, [partition]))[partition]


async def count_loss(link: Link, keys: StreamKeys, token: int, entries: int, removed: int) -> bool:
    return await scripts.count_loss(link, keys, PROCESSOR, 0, token, "m", entries, removed)


# park


async def test_parking_is_a_compare_and_set(link: Link, control: ControlKeys) -> None:
    assert await scripts.park(link, control, ALL, b"", PAUSE)
    assert not await scripts.park(link, control, ALL, b"", b"|{}"), "somebody was faster"
    assert await link.call("HGETALL", control.parked) == [b"*", PAUSE]
    assert not await scripts.park(link, control, ALL, b"|{}", b""), "it is another one by now"
    assert await scripts.park(link, control, ALL, PAUSE, b"")
    assert not await scripts.park(link, control, ALL, PAUSE, b""), "it was lifted"
    assert not await link.call("EXISTS", control.parked)
    assert not await link.call("EXISTS", control.group), "a group that nobody joined stays away"


async def test_parking_one_partition_leaves_the_others(link: Link, control: ControlKeys) -> None:
    for partition in (0, 1):
        assert await scripts.park(link, control, partition, b"", b"m|{}")
    assert await scripts.park(link, control, 0, b"m|{}", b"")
    assert await link.call("HGETALL", control.parked) == [b"1", b"m|{}"]


async def test_members_are_told_that_something_is_parked(link: Link, control: ControlKeys, listener: Listener) -> None:
    beat = await scripts.heartbeat(link, seat(control), Op.JOIN)
    await listener.subscribe([control.wake("m")])
    await scripts.park(link, control, ALL, b"", PAUSE)
    async with asyncio.timeout(5):
        assert await listener.message() == (control.wake("m"), b"parked")
    quiet = await scripts.heartbeat(link, seat(control), Op.BEAT, epoch=beat.epoch, settled=True)
    assert quiet.full, "a new epoch, so that an answer that says nothing is not taken for no change"
    assert int(quiet.epoch.partition("@")[0]) > int(beat.epoch.partition("@")[0])
    assert quiet.paused == {0, 1}


# look


async def test_a_look_at_what_was_never_used_finds_nothing(link: Link, keys: StreamKeys) -> None:
    assert await look(link, keys) == Look(None, 0, 0, 0, 0, 0, b"0-0", b"", b"", b"")


async def test_a_look_says_where_a_processor_stands_in_a_log(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 5)
    assert await look(link, keys) == Look(None, 0, 0, 0, 5, 5, b"0-0", sent[0], sent[4], sent[0])
    await acquire(link, keys, 1)
    await scripts.commit(link, keys, PROCESSOR, "m", 0, [Commit(0, 1, b"0-0", sent[2], 3)])
    assert await look(link, keys) == Look(sent[2], 3, 0, 0, 5, 5, b"0-0", sent[0], sent[4], sent[3])
    await link.call("XDEL", keys.log(0), sent[3], sent[0])
    assert await look(link, keys) == Look(sent[2], 3, 0, 0, 3, 5, sent[3], sent[1], sent[4], sent[4])
    await link.call("XTRIM", keys.log(0), "MAXLEN", 0)
    assert await look(link, keys) == Look(sent[2], 3, 0, 0, 0, 5, sent[3], b"", sent[4], b"")


async def test_a_look_takes_partitions_in_any_order_and_a_position_that_was_moved(link: Link, keys: StreamKeys) -> None:
    first, second = await fill(link, keys, 1), await fill(link, keys, 2, partition=1)
    await scripts.reset(link, keys, PROCESSOR, 1, second[0], 1)
    found = await scripts.look(link, keys, PROCESSOR, [1, 0])
    assert (found[0].offset, found[0].following) == (None, first[0])
    assert (found[1].offset, found[1].count, found[1].following) == (second[0], 1, second[1])


# slow


async def test_a_slow_event_is_noted_by_the_servers_clock_and_forgotten(link: Link, control: ControlKeys) -> None:
    now = await server_time(link)
    await scripts.note_slow(link, control, [(0, 7, "1-1", 2.5), (1, 8, "2-2", 1.0)])
    slow = (await group_state(link, control)).slow
    assert (slow[0].token, slow[0].what, slow[1].token, slow[1].what) == (7, "1-1", 8, "2-2")
    assert abs(now - 2.5 - slow[0].since) < 1.0
    assert slow[1].since - slow[0].since == pytest.approx(1.5, abs=0.01)
    await scripts.note_slow(link, control, [(0, 7, "", 0.0), (1, 8, "3-3", 1.0)])
    slow = (await group_state(link, control)).slow
    assert {p: event.what for p, event in slow.items()} == {1: "3-3"}
    await scripts.note_slow(link, control, [(5, 7, "", 0.0)])  # of nothing: it can be repeated


async def test_what_makes_no_progress_is_noted_beside_what_is_slow(link: Link, control: ControlKeys) -> None:
    await scripts.note_slow(link, control, [(0, 7, "1-1", 2.5)])
    await scripts.note_stalled(link, control, [(0, 7, "events are not read", 60.0)])
    state = await group_state(link, control)
    assert (state.slow[0].what, state.stalled[0].what) == ("1-1", "events are not read")
    assert state.slow[0].since - state.stalled[0].since == pytest.approx(57.5, abs=1)
    await scripts.note_stalled(link, control, [(0, 7, "", 0.0)])
    state = await group_state(link, control)
    assert (set(state.slow), set(state.stalled)) == ({0}, set())


# forget_group and forget_positions


async def later(link: Link, moment: float) -> bool:
    return await server_time(link) > moment


async def nobody_lives(link: Link, control: ControlKeys) -> bool:
    return await scripts.forget_group(link, control) == []


async def test_a_group_is_forgotten_only_without_members_that_live(
    link: Link, control: ControlKeys, listener: Listener
) -> None:
    await scripts.heartbeat(link, seat(control), Op.JOIN)
    await scripts.park(link, control, 0, b"", b"m|{}")
    await scripts.note_slow(link, control, [(0, 7, "1-1", 2.5)])
    names = (control.group, control.members, control.targets, control.owners, control.parked, control.slow)
    assert await link.call("EXISTS", *names) == len(names)
    assert await scripts.forget_group(link, control) == ["m"], "it was heard of just now"
    await listener.subscribe([control.wake("m")])
    await scripts.heartbeat(link, replace(seat(control), session=1), Op.BEAT)
    beaten = await server_time(link)
    await eventually(lambda: later(link, beaten + 0.005))
    assert await scripts.forget_group(link, control) == ["m"], "it is silent, but connected"
    assert await link.call("EXISTS", *names) == len(names), "nothing was changed"
    await listener.close()
    await eventually(lambda: nobody_lives(link, control))
    assert await link.call("EXISTS", *names) == 0
    assert await scripts.forget_group(link, control) == [], "it can be repeated"


async def test_forgotten_positions_take_their_counters_groups_and_registration_along(
    link: Link, keys: StreamKeys
) -> None:
    sent = await fill(link, keys, 2)
    await acquire(link, keys, 1)
    await acquire(link, keys, 1, partition=1)
    await scripts.acquire(link, keys, "other", 0, 1, "m")
    for _ in range(2):
        await scripts.forget_positions(link, keys, PROCESSOR, 0, [0, 1])
        assert not await link.call("EXISTS", keys.positions(0, PROCESSOR))
        assert await link.call("SMEMBERS", keys.registered(0)) == [b"other"]
        groups = await link.call("XINFO", "GROUPS", keys.log(0))
        assert [group[1] for group in groups] == [b"other", b"other:mark"]
    assert (await acquire(link, keys, 1)).offset == b"0-0"
    assert len(sent) == await link.call("XLEN", keys.log(0)), "the events are still there"


# Losses


async def test_what_a_running_owner_finds_lost_is_counted_once(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 5)
    await acquire(link, keys, 1)
    await link.call("XTRIM", keys.log(0), "MINID", sent[3])
    logs, cursors = [keys.log(0)], [(b"0-0", 0)]
    assert await scripts.losses(link, PROCESSOR, logs, cursors) == [3]
    for _ in range(2):  # the reply was lost
        assert await count_loss(link, keys, 1, 3, 3)
        assert (await look(link, keys)).lost == 3
    assert await scripts.losses(link, PROCESSOR, logs, [(b"0-0", 3)]) == [0], "it goes on behind them"
    await link.call("XTRIM", keys.log(0), "MINID", sent[4])
    assert await scripts.losses(link, PROCESSOR, logs, [(b"0-0", 3)]) == [1]
    assert await count_loss(link, keys, 1, 1, 4)
    assert (await look(link, keys)).lost == 4


async def test_what_was_counted_while_running_is_not_counted_again_by_the_next_owner(
    link: Link, keys: StreamKeys
) -> None:
    # 1. a running owner finds entries lost  2. it stops before it has processed what lies behind them
    sent = await fill(link, keys, 5)
    await acquire(link, keys, 1)
    await link.call("XTRIM", keys.log(0), "MINID", sent[2])
    assert await count_loss(link, keys, 1, 2, 2)
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 2, 0, b"")
    await link.call("XTRIM", keys.log(0), "MINID", sent[4])
    assert await acquire(link, keys, 3) == Acquired(b"0-0", 4, 2, b""), "and what is lost later is"
    assert await acquire(link, keys, 3) == Acquired(b"0-0", 4, 0, b"")
    assert (await look(link, keys)).lost == 4


async def test_who_does_not_own_the_partition_counts_no_losses(link: Link, keys: StreamKeys) -> None:
    # A frozen owner wakes up: what the next one has processed was trimmed in good order.
    await fill(link, keys, 3)
    assert not await count_loss(link, keys, 1, 3, 3), "nobody ever owned it"
    await acquire(link, keys, 1)
    await acquire(link, keys, 2)
    assert not await count_loss(link, keys, 1, 3, 3)
    assert not await scripts.count_loss(link, keys, PROCESSOR, 0, 2, "another", 3, 3)
    assert (await look(link, keys)).lost == 0


async def test_a_log_that_begins_anew_has_losses_of_its_own(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 4)
    await acquire(link, keys, 1)
    await link.call("XTRIM", keys.log(0), "MINID", sent[3])
    assert (await acquire(link, keys, 2)).lost == 3
    await scripts.commit(link, keys, PROCESSOR, "m", 0, [Commit(0, 2, b"0-0", sent[3], 4)])
    await link.call("DEL", keys.log(0))
    assert (await acquire(link, keys, 3)).replaced
    again = await fill(link, keys, 2, sequence=2)
    await link.call("XTRIM", keys.log(0), "MINID", again[1])
    assert (await acquire(link, keys, 4)).lost == 1


async def test_rollbacks_are_counted_where_they_are_noticed(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 3)
    await acquire(link, keys, 1)
    refused = [Commit(0, 1, sent[0], sent[1], 2)]  # redis has lost the one up to sent[0]
    for times in (1, 2):
        [(status, _)] = await scripts.commit(link, keys, PROCESSOR, "m", 0, refused)
        assert status is CommitStatus.ROLLBACK
        assert (await look(link, keys)).rollbacks == times
    await link.call("HDEL", keys.positions(0, PROCESSOR), 0)
    await scripts.commit(link, keys, PROCESSOR, "m", 0, refused)
    assert (await look(link, keys)).rollbacks == 3
    await acquire(link, keys, 2)
    await scripts.commit(link, keys, PROCESSOR, "m", 0, [Commit(0, 2, b"0-0", sent[2], 3)])
    await link.call("DEL", keys.log(0))
    for _ in range(2):
        await acquire(link, keys, 3)
        assert (await look(link, keys)).rollbacks == 4
    assert (await look(link, keys, 1)).rollbacks == 0


async def test_an_operator_acknowledges_what_was_seen_and_not_what_came_since(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 4)
    await acquire(link, keys, 1)
    await link.call("XTRIM", keys.log(0), "MINID", sent[2])
    assert (await acquire(link, keys, 2)).lost == 2
    assert not await scripts.acknowledge(link, keys, PROCESSOR, 0, 1, 0)
    assert not await scripts.acknowledge(link, keys, PROCESSOR, 0, 2, 1)
    assert (await look(link, keys)).lost == 2
    assert await scripts.acknowledge(link, keys, PROCESSOR, 0, 2, 0)
    assert (await look(link, keys)).lost == 0
    await link.call("XTRIM", keys.log(0), "MINID", sent[3])
    assert (await acquire(link, keys, 3)).lost == 1, "what was acknowledged does not come back"


# quarantine, as it is shown


async def test_a_group_shows_its_members_owners_and_what_is_parked(link: Link, control: ControlKeys) -> None:
    beat = await scripts.heartbeat(link, seat(control), Op.JOIN)
    await scripts.quarantine(link, seat(control), 1, beat.granted[1], {"error": "a|b"})
    await scripts.park(link, control, ALL, b"", PAUSE)
    state = await group_state(link, control)
    (member,) = state.members
    assert (member.name, member.session, member.connected, member.draining) == ("m", 10.0, False, False)
    assert 0 <= member.silent < 5
    assert {p: (owner.member, owner.token) for p, owner in state.owners.items()} == {
        p: ("m", token) for p, token in beat.granted.items()
    }
    assert state.quarantined[1].details == {"error": "a|b"}
    assert state.paused is not None
    assert state.paused.details == json.loads(PAUSE[1:])
    await link.call("DEL", control.members)
    assert (await group_state(link, control)).quarantined == {}, "it has ended with its member"
