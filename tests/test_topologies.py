"""Fail-overs, crashes of primaries and slots that move, under load: nothing is lost, order is kept, losses are told."""

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection

from harness import Recorder, eventually, inspecting, running
from runnel import App, Record
from runnel._core.generations import Generation
from runnel._core.slots import slot_of
from runnel._redis import scripts
from runnel._redis.cluster import ClusterEndpoint, Node
from runnel._redis.durability import REPLICA
from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.link import Endpoint, Link, Listener
from runnel._redis.patience import patiently
from runnel._redis.scripts import Acquired, Batch, Commit
from runnel._redis.sentinel import ANSWER_TIMEOUT, CHECK_INTERVAL, Named, SentinelEndpoint
from runnel.admin import begin_migration, plan_migration, tail_of, watch_migration
from runnel.errors import ConfigurationError, NotDurable, RedisError, RedisUnavailable
from runnel.instruments import Instruments, PartitionRewound
from runnel.server import EmbeddedServer
from topologies import HOST, Cluster, Watched, ask, facts, port_of

pytestmark = pytest.mark.anyio

PARTITIONS = 12

AGAIN = 25.0
"""Seconds until everything is processed after a crash: the servers need about 3 to agree on a new primary."""


class Step(Record):
    key: int
    n: int


class Traffic:
    """An app that sends numbers per key for as long as it is told to, and notes what is processed."""

    def __init__(self, app_name: str, redis_url: str, **settings: Any) -> None:
        self.app = App(name=app_name, redis_url=redis_url, partition_count=PARTITIONS, session_timeout=4, **settings)
        self.steps = self.app.stream("steps", record=Step, partition_by="key", hasher=lambda key: key)
        self.announced = Recorder(self.app)
        self.sent = dict.fromkeys(range(PARTITIONS), 0)
        self.seen: dict[int, list[int]] = {key: [] for key in range(PARTITIONS)}

        @self.app.processor(self.steps)
        async def proc(events):
            async for step in events.records():
                self.seen[step.key].append(step.n)

    @property
    def done(self) -> int:
        return sum(map(len, self.seen.values()))

    async def send_one(self, key: int) -> None:
        await self.steps.send(Step(key=key, n=self.sent[key]))
        self.sent[key] += 1

    async def _send_on(self, key: int, until: asyncio.Event) -> None:
        while not until.is_set():
            await self.send_one(key)
            await asyncio.sleep(0.01)

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Send for as long as the block runs, and wait until it is processed. No event is given up on the way."""
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as senders:
            for key in self.sent:
                senders.create_task(self._send_on(key, enough))
            await eventually(lambda: min(map(len, self.seen.values())) > 3)
            yield
            enough.set()
        await eventually(lambda: all(self.seen[key][-1] == self.sent[key] - 1 for key in self.sent), timeout=AGAIN)

    def nothing_is_lost(self) -> None:
        """Everything was processed, and for the first time in order; what repeats, repeats in order."""
        for key, numbers in self.seen.items():
            assert set(range(self.sent[key])) <= set(numbers), f"something of {key} is missing"
            firsts = list(dict.fromkeys(numbers))
            assert firsts == sorted(firsts), f"{key} is out of order"
            assert all(later <= n + 1 for n, later in itertools.pairwise(numbers)), f"something of {key} was skipped"

    def nothing_is_repeated(self) -> None:
        assert {key: n for key, n in self.seen.items() if len(set(n)) < len(n)} == {}


@pytest.fixture
def servers_of(topology: str, request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """From a key to the servers, and to how to find out its primary."""
    if topology == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        return lambda key: (cluster, lambda: cluster.primary_of(slot_of(key)))
    watched: Watched = request.getfixturevalue("watched")
    return lambda key: (watched, lambda: watched.primary)


several = pytest.mark.parametrize("topology", ["sentinel", "cluster"], indirect=True)


async def test_a_fail_over_of_a_cluster_that_was_asked_for_loses_nothing_and_repeats_nothing(
    app_name: str, cluster: Cluster
) -> None:
    traffic = Traffic(app_name, cluster.url)
    control = ControlKeys.of(app_name, "steps", "proc")
    async with traffic.app, running(traffic.app) as worker, traffic.flowing():
        for key in (traffic.steps.keys.log(0), control.group):
            await asyncio.to_thread(cluster.fail_over, slot_of(key))
            before = traffic.done
            await eventually(lambda before=before: traffic.done > before + 100, timeout=AGAIN)
            await asyncio.to_thread(cluster.settle)
        await _seen_connected(cluster, control.wake(worker.name))
    traffic.nothing_is_lost()
    traffic.nothing_is_repeated()


async def test_a_channel_is_not_left_with_a_replica_to_which_an_old_table_has_led(
    app_name: str, cluster: Cluster
) -> None:
    channel = ControlKeys.of(app_name, "steps", "proc").wake("m")
    endpoint = ClusterEndpoint(cluster.url)
    await endpoint.primaries()
    replica = cluster.replica_of(cluster.primary_of(slot_of(channel)))
    endpoint.moved(slot_of(channel), Node(HOST, port_of(replica)))
    listener = Listener(endpoint)
    try:
        await patiently("channel", lambda: listener.subscribe([channel]), Instruments())
        await _seen_connected(cluster, channel)
    finally:
        await listener.close()


async def test_who_is_cancelled_while_a_link_closes_leaves_no_connection(app_name: str, cluster: Cluster) -> None:
    """A reader, for instance, that has nothing left to read just when the worker stops."""
    connections = []
    link = ClusterEndpoint(cluster.url).link()
    for number in range(40):
        line = link.at(key := f"runnel:{{{app_name}-{number}}}")
        await line.call("EXISTS", key)
        connections.append(link.connection)
    assert len(set(connections)) > 1, "to several nodes"
    closing = asyncio.create_task(link.close())
    await asyncio.sleep(0)  # it waits for the other end of the first one
    closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing
    assert not [one for one in connections if isinstance(one, AbstractConnection) and one.is_connected]


async def _seen_connected(cluster: Cluster, channel: str) -> None:
    """Wait until the coordinator sees that a member lives."""
    node = cluster.primary_of(slot_of(channel))
    await eventually(lambda: ask(node.url, "PUBSUB", "SHARDNUMSUB", channel)[1] == 1)


async def test_a_fail_over_by_sentinels_that_was_asked_for_loses_nothing_that_the_replica_has_confirmed(
    app_name: str, server_binary: str | Path | None
) -> None:
    """It takes 10 s until the old primary is told: it must be left before that.

    With one replica. Of several, one that follows the old primary for another second may confirm what is lost then.
    """
    with Watched(server_binary, replicas=1) as watched:
        traffic = Traffic(app_name, watched.url, durability="replica")
        channel = ControlKeys.of(app_name, "steps", "proc").wake
        async with traffic.app, running(traffic.app) as worker, traffic.flowing():
            old = watched.primary
            new = await asyncio.to_thread(watched.fail_over)
            await eventually(lambda: ask(new.url, "PUBSUB", "SHARDNUMSUB", channel(worker.name))[1] == 1)
            assert facts(old.url, "replication")["role"] == "master", "and takes writes"
            await asyncio.to_thread(watched.settle)
        traffic.nothing_is_lost()


@several
async def test_a_crash_of_a_primary_under_load_loses_nothing_that_a_replica_has_confirmed(
    app_name: str, redis_url: str, servers_of: Callable[[str], Any]
) -> None:
    traffic = Traffic(app_name, redis_url, durability="replica")
    async with traffic.app, running(traffic.app), traffic.flowing():
        servers, primary = servers_of(traffic.steps.keys.log(0))
        dead = primary()
        dead.kill()
        try:
            await asyncio.to_thread(_until_another, primary, dead)
        finally:
            await asyncio.to_thread(dead.start)
            await asyncio.to_thread(servers.settle)
        before = traffic.done
        await eventually(lambda: traffic.done > before + 100, timeout=AGAIN)
    traffic.nothing_is_lost()


@several
async def test_a_primary_that_was_frozen_and_believes_to_be_one_still_takes_nothing_with_it(
    app_name: str, redis_url: str, servers_of: Callable[[str], Any]
) -> None:
    """When it goes on, commands that waited in its sockets are carried out, by a primary that is none any more."""
    traffic = Traffic(app_name, redis_url, durability="replica")
    async with traffic.app, running(traffic.app):
        async with traffic.flowing():
            servers, primary = servers_of(traffic.steps.keys.log(0))
            frozen = primary()
            pid = frozen.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                await asyncio.to_thread(_until_another, primary, frozen)
            finally:
                os.kill(pid, signal.SIGCONT)
            before = traffic.done
            await eventually(lambda: traffic.done > before + 100, timeout=AGAIN)
        await asyncio.to_thread(servers.settle)
    traffic.nothing_is_lost()


class Views:
    """Sentinels of which the last one, in the order in which they are asked at first, says what it is told to."""

    def __init__(self, endpoint: SentinelEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
        self.last = endpoint._sentinels[-1]
        self.address: tuple[str, int] | None = None
        self.fail_overs = 0
        """By how many it is ahead of the others."""
        self.silent: set[Endpoint] = set()
        self.asked: list[Endpoint] = []
        named_by, connect = endpoint._named_by, Endpoint.connect

        async def named(sentinel: Endpoint, asking: Any) -> Named | str:
            self.asked.append(sentinel)
            answer = await named_by(sentinel, asking)
            if sentinel is not self.last or self.address is None or not isinstance(answer, Named):
                return answer
            return Named(self.address, answer.epoch + self.fail_overs)

        async def held_up(this: Endpoint) -> Any:
            if this in self.silent:
                await asyncio.sleep(60)
            return await connect(this)

        monkeypatch.setattr(endpoint, "_named_by", named)
        monkeypatch.setattr(Endpoint, "connect", held_up)


def _late(app_name: str) -> tuple[Any, ...]:
    """A command whose answer comes so late that it is asked whether the server is still the primary."""
    return ("BLPOP", app_name, 0.4)


async def test_a_late_answer_counts_only_if_no_sentinel_knows_of_a_fail_over(
    watched: Watched, app_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentinels learn of a fail-over one after the other, and a replica may still follow the old primary meanwhile."""
    endpoint = SentinelEndpoint(watched.url)
    link = endpoint.link()
    assert await link.call(*_late(app_name), confirm=REPLICA) is None
    views = Views(endpoint, monkeypatch)
    views.address, views.fail_overs = (HOST, 1), 1
    with pytest.raises(RedisUnavailable, match="no primary any more"):
        await link.call(*_late(app_name), confirm=REPLICA)
    await link.close()


@pytest.mark.parametrize("fail_overs", [0, -1])
async def test_a_sentinel_that_lags_or_has_another_name_for_the_primary_leads_nobody_away_from_it(
    watched: Watched, app_name: str, monkeypatch: pytest.MonkeyPatch, fail_overs: int
) -> None:
    endpoint = SentinelEndpoint(watched.url)
    link = endpoint.link()
    await asyncio.to_thread(watched.fail_over)  # so that there is an earlier one
    await asyncio.to_thread(watched.settle)
    await patiently("ping", lambda: link.call("PING"), Instruments())
    views = Views(endpoint, monkeypatch)
    views.address, views.fail_overs = (HOST, 1), fail_overs
    connection = link.connection
    for _ in range(3):
        assert await link.call(*_late(app_name), confirm=REPLICA) is None
    assert views.last in views.asked
    assert link.connection is connection
    await link.close()
    if fail_overs < 0:  # also where it is the first one that is asked by who knows better
        endpoint._sentinels.sort(key=lambda sentinel: sentinel is not views.last)
        views.asked.clear()
        assert await link.call("PING") == b"PONG"
        assert views.asked[0] is views.last
        await link.close()


async def test_a_process_that_has_met_a_sentinel_that_is_cut_off_asks_another_one_the_next_time(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = SentinelEndpoint(watched.url)
    views = Views(endpoint, monkeypatch)
    views.address, views.last = (HOST, 1), endpoint._sentinels[0]
    link = endpoint.link()
    with pytest.raises(RedisUnavailable, match="no primary"):
        await link.call("PING")
    assert await link.call("PING") == b"PONG"
    await link.close()


async def test_sentinels_that_do_not_answer_hold_up_a_healthy_primary_only_once(
    watched: Watched, app_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = SentinelEndpoint(watched.url)
    link = endpoint.link()
    await link.call("PING")
    views = Views(endpoint, monkeypatch)
    views.silent.add(endpoint._sentinels[0])
    assert await link.call(*_late(app_name), confirm=REPLICA) is None  # a second, once
    before = time.monotonic()
    for _ in range(2):
        assert await link.call(*_late(app_name), confirm=REPLICA) is None
    assert time.monotonic() - before < 2 * (0.4 + CHECK_INTERVAL) < 2 * ANSWER_TIMEOUT
    views.silent.update(endpoint._sentinels)
    await asyncio.sleep(CHECK_INTERVAL)
    await link.call("PING")  # three seconds, once
    before = time.monotonic()
    for _ in range(4):
        await asyncio.sleep(CHECK_INTERVAL)
        await link.call("PING")
    assert time.monotonic() - before < 4 * CHECK_INTERVAL + ANSWER_TIMEOUT / 2
    views.address, views.fail_overs = (HOST, 1), 1
    views.silent.discard(views.last)
    connection = link.connection

    async def left() -> bool:
        with suppress(RedisUnavailable):
            await link.call("PING")
        return link.connection is not connection

    await eventually(left)  # one answers again, and is heard
    await link.close()


async def test_a_handler_that_blocks_its_loop_does_not_blind_the_others(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = SentinelEndpoint(watched.url)
    link = endpoint.link()
    await link.call("PING")
    views = Views(endpoint, monkeypatch)

    async def elsewhere() -> bool:
        """On the loop of another thread, while this one is blocked in the middle of a question."""
        other = endpoint.link()
        await other.call("PING")
        await asyncio.sleep(1.5 * CHECK_INTERVAL)
        views.asked.clear()
        await other.call("PING")
        await other.close()
        return bool(views.asked)

    await asyncio.sleep(CHECK_INTERVAL)
    waiting = asyncio.create_task(link.call("PING"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(asyncio.run, elsewhere()).result(timeout=10)
    await waiting
    await link.close()


async def test_what_sentinels_say_that_were_set_up_anew_is_believed_when_all_say_it(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = SentinelEndpoint(watched.url)
    link = endpoint.link()
    await link.call("PING")
    await link.close()
    assert endpoint._named is not None
    here = endpoint._named.address
    endpoint._named = Named((HOST, 1), endpoint._named.epoch + 1)
    views = Views(endpoint, monkeypatch)
    views.silent.add(views.last)
    with pytest.raises(RedisUnavailable, match="has not heard of the last fail-over"):
        await link.call("PING")
    views.silent.clear()
    assert await link.call("PING") == b"PONG"
    assert endpoint._named.address == here
    await link.close()


async def test_what_a_frozen_primary_says_when_it_is_none_any_more_is_not_believed(
    watched: Watched, app_name: str
) -> None:
    endpoint = SentinelEndpoint(watched.url)
    link = endpoint.link()
    old = watched.primary
    pid = old.pid
    await link.call("PING")
    os.kill(pid, signal.SIGSTOP)
    try:
        waiting = asyncio.create_task(link.call("SET", app_name, "lost", timeout=AGAIN))
        await asyncio.to_thread(_until_another, lambda: watched.primary, old)
        names = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", watched.service)
        await eventually(lambda: len({ask(sentinel.url, *names)[1] for sentinel in watched.sentinels}) == 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    with pytest.raises(RedisUnavailable, match="no primary any more"):
        await waiting
    assert await link.call("GET", app_name) is None
    await link.close()
    await asyncio.to_thread(watched.settle)


def _until_another(primary: Callable[[], EmbeddedServer], dead: EmbeddedServer) -> None:
    deadline = time.monotonic() + AGAIN
    while primary() is dead:
        assert time.monotonic() < deadline, "no replica took over"
        time.sleep(0.05)


@several
async def test_what_a_crash_rolls_back_is_told_with_its_range_and_processing_goes_on(
    app_name: str, redis_url: str, servers_of: Callable[[str], Any]
) -> None:
    """The replicas are cut off; what is sent and committed then is gone when one of them takes over."""
    traffic = Traffic(app_name, redis_url)
    async with traffic.app, running(traffic.app), inspecting(traffic.app) as redis:
        for key in traffic.sent:
            await traffic.send_one(key)
        await eventually(lambda: traffic.done == PARTITIONS)
        log = traffic.steps.keys.log(0)
        servers, primary = servers_of(log)

        async def committed() -> bool:
            return await redis.count(traffic.steps, "proc") == traffic.done

        await eventually(committed)
        await redis.link.at(log).call("WAIT", 1, 5000)
        kept = await redis.position(traffic.steps, "proc", 0)
        dead = primary()
        ask(dead.url, "CONFIG", "SET", "requirepass", "a password that no replica knows")
        # Those that are connected stay; the replicas cannot come back.
        await redis.link.at(log).call("CLIENT", "KILL", "TYPE", "replica")
        for _ in range(3):
            await traffic.send_one(0)
        await eventually(lambda: traffic.seen[0] == [0, 1, 2, 3])
        await eventually(committed)
        lost = await redis.position(traffic.steps, "proc", 0)
        assert lost != kept
        dead.kill()
        try:
            await asyncio.to_thread(_until_another, primary, dead)
            await eventually(lambda: _rewound(traffic, 0), timeout=AGAIN)
            rewound = _rewound(traffic, 0)[0]
            assert (rewound.reason, rewound.expected, rewound.stored) == ("rollback", lost, kept)
            traffic.sent[0] = 100
            await traffic.send_one(0)
            await eventually(lambda: traffic.seen[0][-1] == 100, timeout=AGAIN)
        finally:
            await asyncio.to_thread(dead.start)
            await asyncio.to_thread(servers.settle)


def _rewound(traffic: Traffic, partition: int) -> list[PartitionRewound]:
    return [one for one in traffic.announced.of(PartitionRewound) if one.partition == partition]


async def test_slots_that_move_under_load_are_followed_and_nothing_repeats(app_name: str, cluster: Cluster) -> None:
    """A slot with data, and that of the coordinator, on their way for longer than a heartbeat."""
    traffic = Traffic(app_name, cluster.url)
    control = ControlKeys.of(app_name, "steps", "proc")
    async with traffic.app, running(traffic.app) as worker, traffic.flowing():
        names = [traffic.steps.keys.log(0), control.group]
        for name in [*names, traffic.steps.keys.metadata]:
            slot = slot_of(name)
            elsewhere = next(
                node for node in map(cluster.primary_of, (0, 8_000, 16_000)) if node is not cluster.primary_of(slot)
            )
            await asyncio.to_thread(cluster.move_slot, slot, elsewhere, pause=0.2)
            assert cluster.primary_of(slot) is elsewhere
            before = {key: len(numbers) for key, numbers in traffic.seen.items()}
            await eventually(lambda before=before: all(len(traffic.seen[k]) > n + 5 for k, n in before.items()))
        await _seen_connected(cluster, control.wake(worker.name))
    traffic.nothing_is_lost()
    traffic.nothing_is_repeated()


async def _divided_anew(traffic: Traffic, partition_count: int) -> None:
    """Migrate, again whenever that is interrupted, and wait until the processors have gone over."""
    while True:
        try:
            plan = await plan_migration(traffic.app, traffic.steps, partition_count=partition_count)
            await begin_migration(traffic.app, traffic.steps, plan)
            async for _ in watch_migration(traffic.app, traffic.steps):
                pass
            return
        except RedisUnavailable:
            await asyncio.sleep(0.1)


async def test_a_primary_that_crashes_while_a_stream_is_divided_anew_takes_nothing_with_it(
    app_name: str, cluster: Cluster
) -> None:
    traffic = Traffic(app_name, cluster.url, durability="replica")
    async with traffic.app, running(traffic.app), traffic.flowing():
        slot = slot_of(traffic.steps.keys.log(0))
        dead = cluster.primary_of(slot)
        migration = asyncio.create_task(_divided_anew(traffic, 7))
        await asyncio.sleep(0.005)  # some slot groups are sealed
        dead.kill()
        try:
            await asyncio.to_thread(_until_another, lambda: cluster.primary_of(slot), dead)
        finally:
            await asyncio.to_thread(dead.start)
            await asyncio.to_thread(cluster.settle)
        await migration
    traffic.nothing_is_lost()


async def test_slots_that_move_while_a_stream_is_divided_anew_upset_nothing(app_name: str, cluster: Cluster) -> None:
    traffic = Traffic(app_name, cluster.url)
    async with traffic.app, running(traffic.app), traffic.flowing():
        names = [*map(traffic.steps.keys.log, range(4)), traffic.steps.keys.metadata]
        migration = asyncio.create_task(_divided_anew(traffic, 7))
        for slot in map(slot_of, names):
            elsewhere = next(
                node for node in map(cluster.primary_of, (0, 8_000, 16_000)) if node is not cluster.primary_of(slot)
            )
            await asyncio.to_thread(cluster.move_slot, slot, elsewhere, pause=0.01)
        await migration
    traffic.nothing_is_lost()
    traffic.nothing_is_repeated()


async def test_a_primary_that_hangs_holds_up_its_own_partitions_alone(app_name: str, cluster: Cluster) -> None:
    traffic = Traffic(app_name, cluster.url)
    async with traffic.app, running(traffic.app):
        for key in traffic.sent:
            await traffic.send_one(key)
        await eventually(lambda: traffic.done == PARTITIONS)
        control = cluster.primary_of(slot_of(ControlKeys.of(app_name, "steps", "proc").group))
        where = {key: cluster.primary_of(slot_of(traffic.steps.keys.log(key))) for key in traffic.sent}
        hanging = next(node for node in where.values() if node is not control)
        held = [key for key, node in where.items() if node is hanging]
        others = [key for key in where if key not in held]
        asleep = asyncio.create_task(asyncio.to_thread(ask, hanging.url, "CLIENT", "PAUSE", 800, "ALL"))
        await asleep
        sending = [asyncio.create_task(traffic.send_one(key)) for key in (*held, *others)]
        await eventually(lambda: all(len(traffic.seen[key]) == 2 for key in others), timeout=0.6)
        assert all(len(traffic.seen[key]) == 1 for key in held)
        await asyncio.gather(*sending)
        await eventually(lambda: all(len(traffic.seen[key]) == 2 for key in held))


async def test_a_stream_is_spread_evenly_over_the_primaries(app_name: str, cluster: Cluster) -> None:
    app = App(name=app_name, redis_url=cluster.url, partition_count=16)
    stream = app.stream("steps", record=Step, partition_by="key", hasher=lambda key: key)
    async with app, inspecting(app) as redis:
        await stream.send(*(Step(key=key, n=0) for key in range(16)))
        assert (await redis.link.at(stream.keys.metadata).call("HGET", stream.keys.metadata, "slot_groups")) == b"12"
        primaries = [cluster.primary_of(slot_of(stream.keys.log(partition))) for partition in range(16)]
        assert sorted(primaries.count(node) for node in set(primaries)) == [5, 5, 6]


async def test_a_stream_stays_divided_as_it_was_when_it_was_first_used(app_name: str, cluster: Cluster) -> None:
    """However many primaries there are later; here, as if there had been one."""
    first, later = (App(name=app_name, redis_url=cluster.url, partition_count=4) for _ in range(2))
    stream = later.stream("steps", record=Step, partition_by="key", hasher=lambda key: key)
    same = first.stream("steps", record=Step, partition_by="key", hasher=stream.options.hasher)
    same._adopt(Generation(0, 4, 1))
    async with first, later:
        await same.send(Step(key=0, n=0))
        await stream.send(Step(key=0, n=1))
        assert stream.keys == same.keys
        assert stream.keys.slot_groups == 1
        async with inspecting(later) as redis:
            assert len(await redis.entries(stream, 0)) == 2


async def test_a_node_of_a_cluster_under_a_plain_url_says_how_to_name_it(cluster: Cluster) -> None:
    link = Link(Endpoint(cluster.nodes[0].url))
    try:
        name = next(name for name in "abcdefgh" if cluster.primary_of(slot_of(name)) is not cluster.nodes[0])
        with pytest.raises(RedisError, match=r"is a node of a Redis Cluster.*redis\+cluster://HOST:PORT"):
            await link.call("GET", name)
    finally:
        await link.close()


# Users


@several
async def test_user_and_password_go_to_every_server_and_those_of_the_sentinels_to_them(
    app_name: str, topology: str, redis_url: str, servers_of: Callable[[str], Any]
) -> None:
    servers, _ = servers_of("")
    for node in servers.nodes:
        ask(node.url, "ACL", "SETUSER", "clerk", "on", ">p@ss", "~*", "&*", "+@all")
    for sentinel in servers.sentinels if topology == "sentinel" else ():
        ask(sentinel.url, "ACL", "SETUSER", "watcher", "on", ">sea/saw", "+@all")
    scheme, _, hosts = redis_url.partition("://")
    query = "?sentinel_username=watcher&sentinel_password=sea%2Fsaw" if topology == "sentinel" else ""
    traffic = Traffic(app_name, f"{scheme}://clerk:p%40ss@{hosts}{query}")
    async with traffic.app, running(traffic.app), inspecting(traffic.app) as redis:
        for key in traffic.sent:
            await traffic.send_one(key)
            assert await redis.link.at(traffic.steps.keys.log(key)).call("ACL", "WHOAMI") == b"clerk"
        await eventually(lambda: traffic.done == PARTITIONS)
        if topology == "sentinel":
            assert isinstance(traffic.app.endpoint, SentinelEndpoint)
            for sentinel in traffic.app.endpoint._sentinels:
                link = sentinel.link()
                assert await link.call("ACL", "WHOAMI") == b"watcher"
                await link.close()
    refused = App(name=app_name, redis_url=f"{scheme}://clerk:wrong@{hosts}{query}", send_timeout=0.5)
    stream = refused.stream("steps", record=Step, partition_by="key", partition_count=PARTITIONS)
    async with refused:
        with pytest.raises(RedisUnavailable, match="refused the user or password") as raised:
            await stream.send(Step(key=0, n=0))
    assert "wrong" not in str(raised.value)


# Durability


async def test_without_a_replica_that_confirms_sending_fails_and_says_where_the_event_is(
    app_name: str, server: EmbeddedServer
) -> None:
    app = App(name=app_name, redis_url=server.url, partition_count=1)
    app.configure(send_timeout=1.5)
    stream = app.stream("steps", record=Step, partition_by="key", durability="replica")
    async with app, inspecting(app) as redis:
        with pytest.raises(NotDurable, match="stored on the primary, but no replica has confirmed it"):
            await stream.send(Step(key=0, n=0))
        assert len(await redis.entries(stream, 0)) == 1, "once, however often it was repeated"


async def test_what_is_repeated_on_another_connection_is_not_taken_for_confirmed(
    watched: Watched, app_name: str
) -> None:
    """It changes nothing more, and WAIT only waits for what its own connection has written (Valkey 9)."""
    keys, quickly = StreamKeys(app_name, "steps"), replace(REPLICA, command=("WAIT", 1, 50))
    links = [Link(Endpoint(watched.primary.url)) for _ in range(3)]
    acquired = await scripts.acquire(links[2], keys, "proc", 0, 1, "m")
    assert isinstance(acquired, Acquired)
    await links[2].call("WAIT", 2, 5000)
    pids = [node.pid for node in watched.nodes if node is not watched.primary]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        batch = Batch(0, "producer", 1, 0, [(b"data", b"x")])
        for link in links[:2]:
            with pytest.raises(NotDurable):
                await scripts.append(link, keys, 0, [batch], limit=0, trim=False, expiry=60_000, confirm=quickly)
        [[entry, _]] = await links[2].call("XRANGE", keys.log(0), "-", "+")
        for link in links[:2]:
            with pytest.raises(NotDurable):
                await scripts.commit(link, keys, "proc", "m", 0, [Commit(0, 1, b"0-0", entry, 1)], quickly)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        for link in links:
            await link.close()
        await asyncio.to_thread(watched.settle)


async def test_what_is_to_be_on_disk_is_confirmed_or_refused_with_what_it_takes(
    app_name: str, server_binary: str | Path | None, tmp_path: Path
) -> None:
    with EmbeddedServer(binary=server_binary, append_only=True, data_dir=tmp_path) as server:
        app = App(name=app_name, redis_url=server.url, durability="disk", partition_count=2)
        stream = app.stream("steps", record=Step, partition_by="key")
        seen: list[int] = []

        @app.processor(stream)
        async def proc(events):
            async for step in events.records():
                seen.append(step.n)

        if server.version.startswith("Redis 7.0"):
            with pytest.raises(ConfigurationError, match=r"takes Redis 7\.2.*this server is Redis 7\.0"):
                async with app:
                    await stream.send(Step(key=0, n=0))
            return
        async with app, running(app), inspecting(app) as redis:
            await stream.send(Step(key=0, n=0))
            await eventually(lambda: seen == [0])

            async def committed() -> bool:
                return await redis.count(stream, "proc") == 1

            await eventually(committed)
            server.kill()
            server.start()
            await patiently("look", lambda: redis.link.call("PING"), app.instruments)
            assert len(await redis.entries(stream, stream.partition_of(Step(key=0, n=0)))) == 1


async def test_without_an_append_only_file_nothing_can_be_on_disk(app_name: str, server: EmbeddedServer) -> None:
    app = App(name=app_name, redis_url=server.url, durability="disk")
    stream = app.stream("steps", record=Step, partition_by="key")
    async with app:
        with pytest.raises(ConfigurationError, match=r"append-only file|takes Redis 7\.2"):
            await stream.send(Step(key=0, n=0))


async def test_the_tail_of_a_stream_that_is_yet_to_be_used_begins_with_its_first_event(
    app_name: str, cluster: Cluster
) -> None:
    traffic = Traffic(app_name, cluster.url)
    seen: list[int] = []

    async def follow() -> None:
        looking = Traffic(app_name, cluster.url)
        async for event in tail_of(looking.app, looking.steps, follow=True):
            seen.append(event.record.key)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    async with traffic.app:
        for key in traffic.sent:
            await traffic.send_one(key)
        await eventually(lambda: sorted(seen) == sorted(traffic.sent))
        await traffic.send_one(3)
        await eventually(lambda: len(seen) == PARTITIONS + 1)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
