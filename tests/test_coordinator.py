"""The group coordinator: the heartbeat script, on a real server, with members that are played here."""

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runnel._core.assignment import assign
from runnel._core.reconcile import reconcile
from runnel._redis import scripts
from runnel._redis.keys import ControlKeys
from runnel._redis.link import Endpoint, Link, Listener
from runnel._redis.scripts import Beat, Op, Seat

pytestmark = pytest.mark.anyio

NEVER = 10**9
"""Milliseconds; longer than any test."""


@dataclass
class Member:
    """A worker's seat, reduced to its book-keeping: it does what it is told, when it is asked to beat."""

    link: Link
    seat: Seat
    epoch: str = ""
    held: dict[int, int] = field(default_factory=dict)
    draining: dict[int, int] = field(default_factory=dict)
    releases: dict[int, int] = field(default_factory=dict)
    waiting: int = 0

    @property
    def name(self) -> str:
        return self.seat.member

    async def say(
        self, op: Op = Op.BEAT, *, drained: bool = True, floor: int = 0, heard: bool = True, unheard: float = 0.0
    ) -> Beat:
        """One heartbeat.

        Arguments:
            drained: whether everything that is being drained is done by now, so that it is released.
            floor: as the script's.
            heard: whether the answer arrives.
            unheard: as the script's.
        """
        if drained:
            self.releases |= self.draining
            self.held = {p: token for p, token in self.held.items() if p not in self.draining}
            self.draining = {}
        settled = not (self.waiting or self.draining or self.releases)
        sent = dict(self.releases)
        beat = await scripts.heartbeat(
            *(self.link, self.seat, op),
            epoch=self.epoch,
            settled=settled,
            floor=floor,
            unheard=unheard,
            releases=list(sent.items()),
        )
        if not heard:
            return beat
        self.epoch, self.waiting = beat.epoch, beat.waiting
        self.releases = {p: token for p, token in self.releases.items() if sent.get(p) != token}
        if op is Op.LEAVE or not beat.known:
            self.held, self.draining = {}, {}
        elif beat.full:
            plan = reconcile(self.held, self.draining, beat.granted, beat.revoked)
            for partition in plan.lose:
                del self.held[partition]
                self.draining.pop(partition, None)
            self.draining |= {p: self.held[p] for p in plan.drain}
            self.held |= dict(plan.acquire)
            self.releases |= dict(plan.release)
        return beat

    async def join(self) -> Beat:
        return await self.say(Op.JOIN)


@dataclass
class Group:
    """The members of a group, and what the server stores about them."""

    link: Link
    keys: ControlKeys
    partition_count: int = 4
    session: int = 60_000
    join_delay: int = 0
    grace: int = NEVER
    silence: int = NEVER
    slot_groups: int = 1

    def member(self, name: str) -> Member:
        terms = (self.session, self.join_delay, self.grace, self.silence, self.slot_groups)
        return Member(self.link, Seat(self.keys, name, self.partition_count, *terms))

    async def joined(self, *names: str) -> list[Member]:
        """Members that have joined in this order, and have settled."""
        members = [self.member(name) for name in names]
        for member in members:
            await member.join()
        await settle(*members)
        return members

    async def hash(self, key: str) -> dict[str, str]:
        flat = await self.link.call("HGETALL", key)
        return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}

    async def names(self) -> set[str]:
        return set(await self.hash(self.keys.members))

    async def targets(self) -> dict[int, str]:
        return {int(p): name for p, name in (await self.hash(self.keys.targets)).items()}


@pytest.fixture
def group(link: Link, app_name: str) -> Group:
    return Group(link, ControlKeys.of(app_name, "flights", "delays"))


@pytest.fixture
async def listen(redis_url: str) -> AsyncIterator[Callable[[Member], Awaitable[Listener]]]:
    """Connects members, as the server sees it."""
    listeners = []

    async def connect(member: Member) -> Listener:
        listener = Listener(Endpoint(redis_url))
        listeners.append(listener)
        await listener.subscribe([member.seat.keys.wake(member.name)])
        return listener

    yield connect
    for listener in listeners:
        await listener.close()


Listen = Callable[[Member], Awaitable[Listener]]


async def settle(*members: Member) -> None:
    """Let everybody beat until nothing is open. Every partition that moves takes a revocation, a release, a grant."""
    for _ in range(4):
        for member in members:
            await member.say()
    assert not any(member.waiting or member.draining or member.releases for member in members)


async def until(condition: Callable[[], Awaitable[object]], *, within: float = 5.0) -> None:
    """Ask again and again, until it is so."""
    with anyio.fail_after(within):
        while not await condition():
            await anyio.lowlevel.checkpoint()


def sizes(*members: Member) -> list[int]:
    return sorted(len(member.held) for member in members)


def owned_by_one_each(group: Group, *members: Member) -> bool:
    return sorted(p for member in members for p in member.held) == list(range(group.partition_count))


# Joining and sharing


@pytest.mark.parametrize("op", [Op.BEAT, Op.DRAIN])
async def test_a_beat_of_somebody_who_did_not_join_is_unknown(group: Group, op: Op) -> None:
    beat = await group.member("a").say(op)
    assert (beat.known, beat.granted, beat.revoked, beat.waiting) == (False, {}, {}, 0)
    assert await group.names() == set()


async def test_who_joins_alone_gets_everything_at_once(group: Group) -> None:
    group = replace(group, join_delay=NEVER)  # there is nobody whose partitions would move
    beat = await group.member("a").join()
    assert beat.known
    assert beat.full
    assert sorted(beat.granted) == [0, 1, 2, 3]
    assert (beat.revoked, beat.waiting, beat.again, beat.quarantined) == ({}, 0, None, frozenset())
    assert len(set(beat.granted.values())) == 4


async def test_joining_twice_is_a_heartbeat(group: Group) -> None:
    a = group.member("a")
    first, second = await a.join(), await a.join()
    assert second.granted == first.granted
    assert second.epoch == first.epoch


async def test_a_settled_member_is_told_only_what_is_new(group: Group) -> None:
    a, b = await group.joined("a", "b")
    beat = await a.say()
    assert (beat.full, beat.granted, beat.revoked) == (False, {}, {})
    await b.say(Op.LEAVE)
    beat = await a.say()
    assert beat.full
    assert sorted(beat.granted) == [0, 1, 2, 3]


async def test_members_share_within_one_and_only_what_moves_stops(group: Group) -> None:
    group = replace(group, partition_count=16)
    a, b = await group.joined("a", "b")
    assert sizes(a, b) == [8, 8]
    before = {**a.held, **b.held}
    c = group.member("c")
    await c.join()
    await settle(a, b, c)
    assert sizes(a, b, c) == [5, 5, 6]
    after = {**a.held, **b.held, **c.held}
    moved = {p for p in before if before[p] != after[p]}
    assert moved == set(c.held)
    assert all(after[p] > before[p] for p in moved)


async def test_a_member_more_than_partitions_stands_by_and_takes_over(group: Group) -> None:
    group = replace(group, partition_count=2)
    a, b, c = await group.joined("a", "b", "c")
    assert [len(m.held) for m in (a, b, c)] == [1, 1, 0]
    freed = set(a.held)
    await a.say(Op.LEAVE)
    await settle(b, c)
    assert set(c.held) == freed


async def test_a_join_waits_for_others_so_that_partitions_move_once(group: Group) -> None:
    group = replace(group, join_delay=30_000)
    [a] = await group.joined("a")
    b, c = group.member("b"), group.member("c")
    beat = await b.join()
    assert beat.again is not None
    assert 29 < beat.again <= 30
    assert beat.waiting == 0
    await c.join()
    assert set((await group.targets()).values()) == {"a"}
    await group.link.call("HINCRBY", group.keys.group, "clock", 30_000)
    assert len((await a.say()).revoked) == 2
    await settle(a, b, c)
    assert sizes(a, b, c) == [1, 1, 2]


# Handing over


async def test_a_partition_is_granted_only_after_its_owner_released_it(group: Group) -> None:
    [a] = await group.joined("a")
    b = group.member("b")
    beat = await b.join()
    assert (beat.granted, beat.waiting) == ({}, 2)
    told = await a.say()
    assert len(told.revoked) == 2
    assert len(told.granted) == 2
    for _ in range(3):  # draining takes a while
        await a.say(drained=False)
        beat = await b.say()
        assert (beat.granted, beat.waiting) == ({}, 2)
    await a.say()
    beat = await b.say()
    assert set(beat.granted) == set(told.revoked)
    assert all(beat.granted[p] > told.revoked[p] for p in beat.granted)


async def test_a_release_with_another_token_or_by_another_member_is_ignored(group: Group) -> None:
    [a] = await group.joined("a")
    b = group.member("b")
    await b.join()
    partition, token = next(iter((await a.say()).revoked.items()))
    for releaser, wrong in ((a, token + 1), (a, token - 1), (b, token)):
        await scripts.heartbeat(group.link, releaser.seat, Op.BEAT, releases=[(partition, wrong)])
        assert partition not in (await b.say()).granted
    await scripts.heartbeat(group.link, a.seat, Op.BEAT, releases=[(partition, token)])
    assert partition in (await b.say()).granted


async def test_answers_that_are_lost_change_nothing(group: Group) -> None:
    a, b = group.member("a"), group.member("b")
    lost = await a.say(Op.JOIN, heard=False)
    assert (await a.join()).granted == lost.granted
    await b.say(Op.JOIN, heard=False)
    await b.join()
    await a.say(heard=False)
    await a.say()
    await a.say(heard=False)  # carries the releases
    await b.say(heard=False)  # carries the grants
    await settle(a, b)
    assert sizes(a, b) == [2, 2]
    assert owned_by_one_each(group, a, b)


async def test_a_revocation_can_be_withdrawn(group: Group) -> None:
    [a] = await group.joined("a")
    b = group.member("b")
    await b.join()
    before = dict((await a.say()).revoked)
    await b.say(Op.LEAVE)
    beat = await a.say(drained=False)
    assert beat.revoked == {}
    assert before.items() <= beat.granted.items()
    await settle(a)
    assert len(a.held) == 4


async def test_a_second_revocation_has_a_grace_period_of_its_own(group: Group) -> None:
    group = replace(group, grace=10_000)
    [a] = await group.joined("a")
    b = group.member("b")
    await b.join()
    assert (await a.say()).revoked
    await b.say(Op.LEAVE)
    assert not (await a.say(drained=False)).revoked
    await group.link.call("HINCRBY", group.keys.group, "clock", 11_000)
    await b.join()
    assert (await a.say(drained=False)).revoked
    assert (await b.say()).granted == {}


async def test_a_drain_hands_everything_over_and_gets_nothing_new(group: Group) -> None:
    a, b = await group.joined("a", "b")
    beat = await a.say(Op.DRAIN)
    assert beat.known
    assert (beat.granted, len(beat.revoked)) == ({}, 2)
    assert (await b.say()).waiting == 2
    assert (await a.say(Op.DRAIN)).revoked == {}  # it has released them
    await b.say()
    assert len(b.held) == 4
    beat = await a.say(Op.DRAIN)
    assert (beat.known, beat.granted, beat.revoked, beat.waiting) == (True, {}, {}, 0)
    assert (await a.say(Op.LEAVE)).known
    assert await group.names() == {"b"}
    assert not (await a.say()).known


async def test_the_last_member_that_drains_gets_its_partitions_not_back(group: Group) -> None:
    [a] = await group.joined("a")
    assert len((await a.say(Op.DRAIN)).revoked) == 4
    for _ in range(3):
        beat = await a.say(Op.DRAIN)
        assert (beat.granted, beat.revoked) == ({}, {})
    b = group.member("b")
    assert len((await b.join()).granted) == 4


async def test_a_draining_member_drains_also_when_it_beats_or_joins_again(group: Group) -> None:
    [a] = await group.joined("a")
    await a.say(Op.DRAIN)
    for op in (Op.BEAT, Op.JOIN):
        assert (await a.say(op, drained=False)).granted == {}


async def test_who_leaves_frees_its_partitions_at_once(group: Group) -> None:
    a, b = await group.joined("a", "b")
    await a.say(Op.LEAVE)
    assert len((await b.say()).granted) == 4
    assert (await a.say(Op.LEAVE)).known  # again, after a lost answer: nothing to do


@pytest.mark.parametrize(("grace", "session"), [(300, 200), (100, 300)])
async def test_an_ignored_revocation_is_taken_as_done_after_the_grace_period_and_a_session(
    group: Group, grace: int, session: int
) -> None:
    """Who has not heard of it may act until its lease ends, which is before its session does."""
    group = replace(group, grace=grace, session=session)
    [a] = await group.joined("a")
    b = group.member("b")
    await b.join()
    asked = time.monotonic()
    revoked = (await a.say()).revoked

    async def granted() -> bool:
        await a.say(drained=False)
        return bool((await b.say()).granted)

    await until(granted)
    assert time.monotonic() - asked >= 0.29
    assert set(b.held) == set(revoked)
    assert all(b.held[p] > revoked[p] for p in revoked)
    await a.say(drained=False)
    assert owned_by_one_each(group, a, b)


async def test_the_grace_period_begins_when_the_owner_has_been_asked(group: Group) -> None:
    group = replace(group, grace=100)
    await group.joined("a")
    b = group.member("b")
    await b.join()
    start = time.monotonic()

    async def later() -> bool:
        assert (await b.say()).granted == {}
        return time.monotonic() - start > 0.3

    await until(later)


# Tokens


async def test_tokens_only_grow(group: Group) -> None:
    seen = dict.fromkeys(range(4), 0)
    members: list[Member] = []
    for n in range(6):
        members.append(group.member(f"m{n}"))
        await members[-1].join()
        if n % 2:
            await members.pop(0).say(Op.LEAVE)
        await settle(*members)
        for member in members:
            for partition, token in member.held.items():
                assert token >= seen[partition]
                seen[partition] = token
    assert len(set(seen.values())) == 4


async def test_tokens_are_at_least_the_servers_milliseconds(group: Group) -> None:
    seconds, micros = await group.link.call("TIME")
    [a] = await group.joined("a")
    assert all(token >= int(seconds) * 1000 + int(micros) // 1000 for token in a.held.values())


async def test_a_partition_that_is_released_under_a_floor_comes_back_above_it(group: Group) -> None:
    # After a lossy fail-over a data slot can hold a higher token than the coordinator remembers.
    [a] = await group.joined("a")
    floor = max(a.held.values()) + 10**9
    a.draining = {2: a.held[2]}
    others = {p: token for p, token in a.held.items() if p != 2}
    beat = await a.say(floor=floor)
    assert beat.granted[2] > floor
    assert others.items() <= beat.granted.items()
    b = group.member("b")
    await b.join()
    await settle(a, b)
    assert all(token > floor for token in b.held.values())  # and all that come after


# Death


async def test_who_is_silent_for_a_session_is_dead(group: Group) -> None:
    group = replace(group, session=400)
    a, b = await group.joined("a", "b")
    await a.say()
    silent_since = time.monotonic()

    async def survivor_has_all() -> bool:
        await b.say()
        return len(b.held) == 4

    await until(survivor_has_all)
    assert time.monotonic() - silent_since >= 0.39
    assert await group.names() == {"b"}
    beat = await a.say()
    assert not beat.known
    assert a.held == {}


async def test_who_speaks_but_does_not_hear_is_dead_after_a_session(group: Group) -> None:
    group = replace(group, session=400)
    a, b = await group.joined("a", "b")
    await a.say()
    deaf_since = time.monotonic()

    async def hearing_has_all() -> bool:
        await a.say(heard=False, unheard=time.monotonic() - deaf_since)
        await b.say()
        return len(b.held) == 4

    await until(hearing_has_all)
    assert 0.39 <= time.monotonic() - deaf_since < 1.0
    assert await group.names() == {"b"}
    assert not (await a.say(Op.JOIN, unheard=time.monotonic() - deaf_since)).known, "the deaf are not taken in again"
    assert await group.names() == {"b"}
    assert (await a.say(Op.JOIN)).known


async def test_one_answer_that_is_lost_costs_nobody_a_seat(group: Group) -> None:
    group = replace(group, session=400)
    a, b = await group.joined("a", "b")
    held = dict(a.held)
    for _ in range(20):
        lost_at = time.monotonic()
        await a.say(heard=False)
        await a.say(unheard=time.monotonic() - lost_at)
        await b.say()
        await anyio.sleep(0.03)
    assert a.held == held


async def test_who_comes_back_late_but_before_anybody_noticed_goes_on(group: Group) -> None:
    a, b = await group.joined("a", "b")
    held = dict(a.held)
    await group.link.call("HINCRBY", group.keys.group, "clock", group.session - 100)
    await b.say()
    assert await group.names() == {"a", "b"}
    await group.link.call("HINCRBY", group.keys.group, "now", -1000)  # with this, its session is over
    assert (await a.say()).known
    assert a.held == held


async def test_each_member_has_its_own_session(group: Group) -> None:
    patient, hasty = group.member("patient"), replace(group, session=200).member("hasty")
    await patient.join()
    await hasty.join()
    watcher = group.member("watcher")
    await watcher.join()

    async def hasty_is_gone() -> bool:
        await watcher.say()
        return "hasty" not in await group.names()

    await until(hasty_is_gone)
    assert await group.names() == {"patient", "watcher"}


@pytest.mark.parametrize("jump", [3_600_000, -3_600_000])
async def test_a_jump_of_the_clock_or_an_outage_evicts_nobody(group: Group, jump: int) -> None:
    group = replace(group, session=2000)
    a, b = await group.joined("a", "b")
    before = int((await group.hash(group.keys.group))["clock"])
    await group.link.call("HINCRBY", group.keys.group, "now", -jump)
    await b.say()
    clock = int((await group.hash(group.keys.group))["clock"])
    assert before <= clock <= before + 500
    assert (await a.say()).known
    assert await group.names() == {"a", "b"}


# A connection that is gone


async def is_gone(group: Group, watcher: Member, name: str) -> bool:
    await watcher.say()
    return name not in await group.names()


async def test_a_silent_member_without_a_connection_is_dead_at_the_second_look(group: Group) -> None:
    group = replace(group, silence=0)
    a, b = group.member("a"), group.member("b")
    await a.join()
    first_look = time.monotonic()
    beat = await b.join()
    assert beat.again is not None
    assert 0 < beat.again <= 0.1
    assert await group.names() == {"a", "b"}
    await until(lambda: is_gone(group, b, "a"))
    assert time.monotonic() - first_look >= 0.09
    assert len(b.held) == 4


async def test_a_member_that_is_cut_off_but_beats_lives(group: Group) -> None:
    group = replace(group, silence=10_000)
    a, b = await group.joined("a", "b")
    for _ in range(5):
        await group.link.call("HINCRBY", group.keys.group, "clock", 6_000)
        assert (await a.say()).known
        await group.link.call("HINCRBY", group.keys.group, "clock", 6_000)
        assert (await b.say()).known
    assert await group.names() == {"a", "b"}


async def test_a_silent_member_that_is_connected_lives_until_its_connection_is_gone(
    group: Group, listen: Listen
) -> None:
    group = replace(group, silence=150)
    a, b = group.member("a"), group.member("b")
    listener = await listen(a)
    await a.join()
    await b.join()
    start = time.monotonic()

    async def later() -> bool:
        beat = await b.say()
        assert beat.again is None
        return time.monotonic() - start > 0.5

    await until(later)
    assert await group.names() == {"a", "b"}
    await listener.close()
    await until(lambda: is_gone(group, b, "a"))
    await b.say()
    assert len(b.held) == 4


@pytest.mark.parametrize("how", ["restart", "restart in the first millisecond", "fail-over and back"])
async def test_after_a_restart_of_the_server_nobody_is_dead_for_want_of_a_connection(group: Group, how: str) -> None:
    # 1. the server restarts, or is the primary again after another one  2. the first member that is back sees that the
    # others are not connected  3. they are on their way, like itself
    group = replace(group, silence=0)
    a, b = group.member("a"), replace(group, session=2000).member("b")
    await a.join()
    if how == "fail-over and back":
        await group.link.call("REPLICAOF", "127.0.0.1", "1")
        await group.link.call("REPLICAOF", "NO", "ONE")
    else:
        await group.link.call("HSET", group.keys.group, "run", "another")
    if (
        how == "restart in the first millisecond"
    ):  # of the group: the server's clock stands still for the next call, so the logical one is at 0
        await group.link.call("HSET", group.keys.group, "clock", 0, "now", 99_999_999_999_999)
    restart = time.monotonic()
    await b.join()
    await until(lambda: is_gone(group, b, "a"))
    assert time.monotonic() - restart >= 0.99


# Waking


async def message(listener: Listener) -> str:
    with anyio.fail_after(5):
        channel, said = await listener.message()
        assert said == b"assignment"
        return channel


async def test_members_are_woken_when_there_is_something_for_them(group: Group, listen: Listen) -> None:
    a, b, c = (group.member(name) for name in "abc")
    of_a, of_b, of_c = await listen(a), await listen(b), await listen(c)
    await a.join()

    await b.join()
    assert await message(of_a) == group.keys.wake("a")  # it shall hand something back
    await a.say()
    await a.say()
    assert await message(of_b) == group.keys.wake("b")  # its partitions are free
    await settle(a, b)

    await c.join()
    assert await message(of_b) == group.keys.wake("b")  # a, which was first, keeps two
    await settle(a, b, c)
    assert await message(of_c) == group.keys.wake("c")

    await c.say(Op.LEAVE)
    assert await message(of_b) == group.keys.wake("b")


async def test_who_waits_for_a_partition_is_woken_when_its_owner_leaves_without_a_release(
    group: Group, listen: Listen
) -> None:
    # The assignment does not change by that: the partitions were promised to b before.
    [a] = await group.joined("a")
    b = group.member("b")
    await b.join()
    of_b = await listen(b)
    await a.say(Op.DRAIN)
    assert await message(of_b) == group.keys.wake("b")  # the other two are promised to b as well
    assert (await b.say()).waiting == 4
    await a.say(Op.LEAVE, drained=False)
    assert await message(of_b) == group.keys.wake("b")
    assert len((await b.say()).granted) == 4


async def test_who_ignored_its_revocation_is_woken_when_it_has_lost_the_partition(group: Group, listen: Listen) -> None:
    group = replace(group, grace=100, session=300)
    [a] = await group.joined("a")
    b = group.member("b")
    await b.join()
    await a.say()
    of_a = await listen(a)

    async def taken() -> bool:
        await a.say(drained=False)
        return bool((await b.say()).granted)

    await until(taken)
    assert await message(of_a) == group.keys.wake("a")


# What somebody deletes by hand, or a fail-over loses


async def test_without_its_clock_the_group_goes_on(group: Group) -> None:
    a, b = await group.joined("a", "b")
    before = {**a.held, **b.held}
    await group.link.call("DEL", group.keys.group)
    for member in (a, b):
        assert (await member.say()).known
    assert {**a.held, **b.held} == before
    c = group.member("c")
    await c.join()
    await settle(a, b, c)
    assert owned_by_one_each(group, a, b, c)
    assert min(c.held.values()) > max(before.values())
    joined = sorted((int(value.split("|")[0]), name) for name, value in (await group.hash(group.keys.members)).items())
    assert joined == [(1, "a"), (2, "b"), (3, "c")]


async def test_an_assignment_that_was_due_is_made_although_the_clock_was_lost(group: Group) -> None:
    # 1. b joins; partitions are to move after the join delay  2. when that is, is lost  3. nothing else would ever
    # give b a partition
    group = replace(group, join_delay=NEVER)
    [a] = await group.joined("a")
    b = group.member("b")
    await b.join()
    await group.link.call("DEL", group.keys.group)
    await settle(a, b, a, b)
    assert sizes(a, b) == [2, 2]


@pytest.mark.parametrize("lost", ["targets", "owners", "members"])
async def test_what_is_lost_is_made_anew(group: Group, lost: str) -> None:
    group = replace(group, partition_count=7, session=500)
    a, b = await group.joined("a", "b")
    before = {**a.held, **b.held}
    await group.link.call("DEL", getattr(group.keys, lost))
    for member in (a, b):
        if not (await member.say()).known:
            await member.join()

    async def shared() -> bool:  # whose owner is not known waits for a session: somebody may act on a lease
        await a.say()
        await b.say()
        return sizes(a, b) == [3, 4]

    await until(shared)
    await settle(a, b)
    assert sizes(a, b) == [3, 4]
    assert owned_by_one_each(group, a, b)
    after = {**a.held, **b.held}
    if lost == "owners":
        assert all(after[p] > before[p] for p in before)
    assert all(after[p] >= before[p] for p in before)


async def test_the_lost_target_of_one_partition_is_made_anew(group: Group) -> None:
    a, b = await group.joined("a", "b")
    await group.link.call("HDEL", group.keys.targets, 2)
    await a.say()
    await settle(a, b)
    assert sizes(a, b) == [2, 2]
    assert owned_by_one_each(group, a, b)


async def test_when_everything_is_lost_everybody_joins_again(group: Group) -> None:
    a, b = await group.joined("a", "b")
    before = {**a.held, **b.held}
    keys = group.keys
    await group.link.call("DEL", keys.group, keys.members, keys.targets, keys.owners, keys.parked)
    assert not (await a.say()).known
    assert not (await b.say()).known
    await a.join()
    await b.join()
    await settle(a, b)
    assert owned_by_one_each(group, a, b)
    after = {**a.held, **b.held}
    assert all(after[p] > before[p] for p in before)


async def test_who_comes_back_to_an_empty_group_waits_for_those_who_do_not_know_of_it_yet(group: Group) -> None:
    group = replace(group, silence=200)
    a, b = await group.joined("a", "b")
    keys = group.keys
    await group.link.call("DEL", keys.group, keys.members, keys.targets, keys.owners, keys.parked)
    assert not (await a.say()).known
    back = time.monotonic()
    beat = await a.say(Op.REJOIN)
    assert beat.known
    assert beat.granted == {}
    assert beat.again is not None
    assert 0.1 < beat.again <= 0.2
    assert not (await b.say()).known
    assert (await b.say(Op.REJOIN)).granted == {}, "one wait for all"

    async def shared() -> bool:
        await a.say()
        await b.say()
        return len(a.held) == len(b.held) == 2

    await until(shared)
    assert 0.199 <= time.monotonic() - back < 1.0  # the server counts whole milliseconds


async def test_who_was_evicted_is_taken_back_at_once_where_others_are(group: Group) -> None:
    a, b = await group.joined("a", "b")
    await a.say(Op.LEAVE)
    await a.say(Op.REJOIN)
    await settle(a, b)
    assert owned_by_one_each(group, a, b)


# Quarantine


async def test_a_quarantine_survives_a_rebalance_and_ends_with_its_member(group: Group) -> None:
    [a] = await group.joined("a")
    assert await scripts.quarantine(group.link, a.seat, 3, a.held[3], {"error": "boom"})
    b = group.member("b")
    await b.join()
    await settle(a, b)
    assert 3 in b.held
    b.epoch = ""
    assert (await b.say()).quarantined == {3}
    await b.say(Op.LEAVE)
    a.epoch = ""
    assert (await a.say()).quarantined == {3}  # it was not b who marked it
    await b.join()
    await settle(a, b)
    await a.say(Op.LEAVE)
    beat = await b.say()
    assert beat.full
    assert len(beat.granted) == 4
    assert beat.quarantined == frozenset()
    assert not await group.link.call("EXISTS", group.keys.parked)


async def test_a_quarantine_whose_member_was_lost_keeps_nobody_from_the_partition(group: Group) -> None:
    [a] = await group.joined("a")
    assert await scripts.quarantine(group.link, a.seat, 3, a.held[3], {"error": "boom"})
    await group.link.call("DEL", group.keys.members)
    b = group.member("b")
    assert not (await b.join()).granted, "somebody may act on a lease"
    await group.link.call("HINCRBY", group.keys.group, "clock", group.session + 1)
    beat = await b.say()
    assert 3 in beat.granted
    assert beat.quarantined == frozenset()


# Pause


PAUSE = b'|{"since": "2026-01-31T12:00:00+00:00"}'


async def test_a_pause_is_for_all_partitions_and_members_and_outlives_them(group: Group) -> None:
    [a] = await group.joined("a")
    assert (await a.say()).paused == frozenset()
    assert await scripts.park(group.link, group.keys, scripts.ALL, b"", PAUSE)
    beat = await a.say()
    assert beat.full, "a settled member is told"
    assert (beat.paused, beat.quarantined) == (frozenset(range(4)), frozenset())
    await a.say(Op.LEAVE)
    b = group.member("b")
    assert (await b.join()).paused == frozenset(range(4)), "whoever comes later does not begin"
    assert await scripts.park(group.link, group.keys, scripts.ALL, PAUSE, b"")
    beat = await b.say()
    assert beat.full
    assert beat.paused == frozenset()


async def test_a_partition_that_is_quarantined_is_so_whatever_is_paused(group: Group) -> None:
    [a] = await group.joined("a")
    assert await scripts.quarantine(group.link, a.seat, 3, a.held[3], {"error": "boom"})
    await scripts.park(group.link, group.keys, scripts.ALL, b"", PAUSE)
    beat = await a.say()
    assert (beat.quarantined, beat.paused) == ({3}, {0, 1, 2})
    await scripts.park(group.link, group.keys, scripts.ALL, PAUSE, b"")
    beat = await a.say()
    assert (beat.quarantined, beat.paused) == ({3}, frozenset())
    [mark] = await group.link.call("HVALS", group.keys.parked)
    await scripts.park(group.link, group.keys, 3, mark, b"")
    beat = await a.say()
    assert (beat.quarantined, beat.paused) == (frozenset(), frozenset())


# All of it at random

NAMES = [f"m{n}" for n in range(8)]
actions = st.one_of(
    st.tuples(st.sampled_from(["join", "join", "leave", "drain"]), st.integers(0, 7), st.just(True)),
    st.tuples(st.sampled_from(["beat", "beat", "lost"]), st.integers(0, 7), st.booleans()),
)
examples = itertools.count()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    partition_count=st.integers(1, 40), slot_groups=st.integers(1, 12), plan=st.lists(actions, min_size=3, max_size=30)
)
async def test_whoever_comes_and_goes_the_script_assigns_as_the_plain_function_does(
    link: Link, app_name: str, partition_count: int, slot_groups: int, plan: Sequence[tuple[str, int, bool]]
) -> None:
    keys = ControlKeys.of(f"{app_name}-{next(examples)}", "flights", "delays")
    group = Group(link, keys, partition_count, slot_groups=slot_groups)
    members: dict[str, Member] = {}  # in the order in which they joined
    leaving: set[str] = set()
    targets: dict[int, str] = {}
    highest = dict.fromkeys(range(partition_count), 0)

    for action, number, drained in plan:
        name = NAMES[number]
        if action == "join" and name not in members:
            members[name] = group.member(name)
            await members[name].join()
        elif name not in members or action == "join":
            continue
        elif action == "leave":
            await members.pop(name).say(Op.LEAVE)
            leaving.discard(name)
        elif action == "drain":
            leaving.add(name)
            await members[name].say(Op.DRAIN)
        else:
            await members[name].say(drained=drained, heard=action == "beat")

        active = [member for member in members if member not in leaving]
        if action in ("join", "leave", "drain") and active:
            targets = assign(active, partition_count, targets, slot_groups)
        assert await group.targets() == targets
        if active:
            count = [list(targets.values()).count(member) for member in active]
            assert max(count) - min(count) <= 1
        check_hands(members, highest)

    for _ in range(4):
        for name, member in members.items():
            await member.say(Op.DRAIN if name in leaving else Op.BEAT)
            check_hands(members, highest)
    assert not any(m.waiting or m.draining or m.releases for m in members.values())
    if len(members) > len(leaving):
        assert {p: name for name, member in members.items() for p in member.held} == targets
    else:
        assert not any(member.held for member in members.values())


def check_hands(members: dict[str, Member], highest: dict[int, int]) -> None:
    """No partition is in two hands, and none comes back under a lower token."""
    held = [(p, token) for member in members.values() for p, token in member.held.items()]
    assert len({p for p, _ in held}) == len(held)
    for partition, token in held:
        assert token >= highest[partition]
        highest[partition] = token
