"""Groups of workers: how they share partitions, what moves when one comes or goes, and that order is always kept.

All workers of a test run on one event loop, each with an app of its own, as processes would have. What happens to
processes that are killed or frozen is in ``test_processes.py``.
"""

import asyncio
import itertools
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from harness import Inspector, Recorder, eventually, inspecting, running
from runnel import App, Record
from runnel._core.lease import Lease
from runnel._core.read_ahead import ReadAhead
from runnel._redis.keys import ControlKeys
from runnel._redis.link import Endpoint, Link
from runnel._redis.queries import MOVED, publish
from runnel._redis.scripts import reset
from runnel._worker import Worker
from runnel._worker.heartbeats import Heartbeats
from runnel._worker.reader import Reader
from runnel.errors import ConfigurationError
from runnel.feed import Feed
from runnel.instruments import (
    Instruments,
    MemberEvicted,
    MemberJoined,
    PartitionGained,
    PartitionLost,
    PartitionReleased,
    PartitionRewound,
)
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Step(Record):
    key: str
    n: int


class Group:
    """Apps of one name, which write what they process into one list."""

    def __init__(self, app_name: str, redis_url: str, partitions: int = 8, **settings: Any) -> None:
        self.name = app_name
        self.settings = {"redis_url": redis_url, "partition_count": partitions, **settings}
        self.partitions = partitions
        self.seen: list[tuple[str, str, int]] = []
        self.running: Counter[int] = Counter()
        self.overlaps = 0
        self.pause = 0.0

    def app(self, member: str = "") -> tuple[App, Stream[Step]]:
        """What a process would declare."""
        app = App(name=self.name, **self.settings)
        stream = app.stream("steps", record=Step, partition_by="key")

        @app.processor(stream)
        async def proc(events):
            async for step in events.records():
                self.running[events.partition] += 1
                self.overlaps += self.running[events.partition] > 1
                try:
                    await asyncio.sleep(self.pause)
                    self.seen.append((member, step.key, step.n))
                finally:
                    self.running[events.partition] -= 1

        return app, stream

    def by_key(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for _, key, n in self.seen:
            found.setdefault(key, []).append(n)
        return found

    async def owners(self, redis: Inspector) -> dict[int, str]:
        """Partition -> member, as the coordinator has it."""
        flat = await redis.link.call("HGETALL", ControlKeys.of(self.name, "steps", "proc").owners)
        return {int(p): owner.decode().split("|")[0] for p, owner in zip(flat[::2], flat[1::2], strict=True)}

    async def drains(self, redis: Inspector, worker: Worker) -> bool:
        """Whether the coordinator knows that this worker wants to leave."""
        members = ControlKeys.of(self.name, "steps", "proc").members
        state = await redis.link.call("HGET", members, worker.name)
        return state is not None and b"|D|" in state

    async def balanced(self, redis: Inspector, *workers: Worker) -> bool:
        """Whether these workers, and nobody else, own all partitions in equal shares."""
        shares = Counter((await self.owners(redis)).values())
        counts = [shares.pop(worker.name, 0) for worker in workers]
        return not shares and sum(counts) == self.partitions and max(counts) - min(counts) <= 1


@pytest.fixture
def group(app_name: str, redis_url: str) -> Group:
    return Group(app_name, redis_url)


def moves(announced: Recorder) -> tuple[list[int], list[int], list[int]]:
    """Partitions gained, released and lost."""
    return (
        sorted(a.partition for a in announced.of(PartitionGained)),
        sorted(a.partition for a in announced.of(PartitionReleased)),
        sorted(a.partition for a in announced.of(PartitionLost)),
    )


@pytest.mark.parametrize("number", [1, 2, 3, 4])
async def test_workers_share_the_partitions_within_one(group: Group, number: int) -> None:
    app, _ = group.app()
    async with AsyncExitStack() as stack, inspecting(app) as redis:
        workers = [await stack.enter_async_context(running(group.app()[0])) for _ in range(number)]
        await eventually(lambda: group.balanced(redis, *workers))


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
async def test_workers_come_and_go_in_any_order(group: Group, order: list[int]) -> None:
    app, stream = group.app()
    async with inspecting(app) as redis, app:
        stacks = [AsyncExitStack() for _ in order]
        workers: dict[int, Worker] = {}
        for number, stack in enumerate(stacks):
            workers[number] = await stack.enter_async_context(running(group.app()[0]))
            await eventually(lambda: group.balanced(redis, *workers.values()))
        for number in order:
            await stream.send(*(Step(key=f"key-{n}", n=number) for n in range(40)))
            await stacks[number].aclose()
            del workers[number]
            if workers:
                await eventually(lambda: group.balanced(redis, *workers.values()))
                await eventually(lambda: _done(redis, group, stream))
        assert await group.owners(redis) == {}
        async with running(group.app()[0]):
            await eventually(lambda: len(group.seen) >= 160)
    assert group.by_key() == {f"key-{n}": order for n in range(40)}


async def _done(redis: Inspector, group: Group, stream: Stream[Any]) -> bool:
    return await redis.count(stream, "proc") == len(group.seen)


async def test_only_the_partitions_that_move_stop(group: Group) -> None:
    first, _ = group.app()
    second, _ = group.app()
    third, _ = group.app()
    of_first, of_second = Recorder(first), Recorder(second)
    async with inspecting(first) as redis, running(first) as one:
        await eventually(lambda: group.balanced(redis, one))
        before = await group.owners(redis)
        async with running(second) as two:
            await eventually(lambda: group.balanced(redis, one, two))
            shared = await group.owners(redis)
            moved = sorted(p for p, owner in shared.items() if before[p] != owner)
            await eventually(lambda: len(of_second.of(PartitionGained)) == 4)
            assert moves(of_first) == (list(range(8)), moved, [])
            assert moves(of_second) == (moved, [], [])
            async with running(third) as three:
                await eventually(lambda: group.balanced(redis, one, two, three))
                now = await group.owners(redis)
                assert sum(shared[p] != owner for p, owner in now.items()) == 2, "8 = 3 + 3 + 2: no more than must"
        await eventually(lambda: group.balanced(redis, one))
    assert moves(of_first)[2] == []
    assert moves(of_second)[2] == []


async def test_a_stopped_worker_repeats_nothing(group: Group) -> None:
    group.pause = 0.001
    app, stream = group.app()
    keys = [f"key-{n}" for n in range(30)]
    async with app, inspecting(app) as redis, running(group.app("stays")[0]):
        async with running(group.app("goes")[0]):
            await stream.send(*(Step(key=key, n=n) for n in range(40) for key in keys))
            await eventually(lambda: len([member for member, _, _ in group.seen if member == "goes"]) > 50)
        assert len(group.seen) < 1200, "it was stopped in the middle"
        await eventually(lambda: len(group.seen) >= 1200)
        await eventually(lambda: _done(redis, group, stream))
    assert group.by_key() == {key: list(range(40)) for key in keys}
    assert group.overlaps == 0


async def test_a_worker_without_a_partition_stands_by_and_takes_over(app_name: str, redis_url: str) -> None:
    group = Group(app_name, redis_url, partitions=2)
    app, stream = group.app()
    standby, _ = group.app("standby")
    announced = Recorder(standby)
    async with app, inspecting(app) as redis:
        async with AsyncExitStack() as owners:
            workers = [await owners.enter_async_context(running(group.app("owner")[0])) for _ in range(2)]
            await eventually(lambda: group.balanced(redis, *workers))
            third = running(standby)
            spare = await third.__aenter__()
            await stream.send(*(Step(key=f"key-{n}", n=0) for n in range(20)))
            await eventually(lambda: len(group.seen) == 20)
            assert await group.balanced(redis, *workers, spare)
            assert announced.of(PartitionGained) == []
        await eventually(lambda: group.balanced(redis, spare))
        await stream.send(*(Step(key=f"key-{n}", n=1) for n in range(20)))
        await eventually(lambda: len(group.seen) == 40)
        await third.__aexit__(None, None, None)
    assert {member for member, _, n in group.seen if n == 1} == {"standby"}
    assert group.by_key() == {f"key-{n}": [0, 1] for n in range(20)}


async def test_a_partition_waits_for_the_event_in_progress_before_it_moves(app_name: str, redis_url: str) -> None:
    group = Group(app_name, redis_url, partitions=1)
    go_on = asyncio.Event()
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            group.seen.append(("began", step.key, step.n))
            await go_on.wait()
            group.seen.append(("ended", step.key, step.n))

    await stream.send(Step(key="a", n=0), Step(key="a", n=1))
    announced = Recorder(app)
    async with AsyncExitStack() as stack, inspecting(app) as redis:
        leaving = running(app)
        worker = await leaving.__aenter__()
        await eventually(lambda: group.seen)
        await stack.enter_async_context(running(group.app("next")[0]))
        stopping = asyncio.create_task(leaving.__aexit__(None, None, None))
        await eventually(lambda: group.drains(redis, worker))
        assert group.seen == [("began", "a", 0)]
        go_on.set()
        await stopping
        await eventually(lambda: len(group.seen) == 3)
    assert group.seen == [("began", "a", 0), ("ended", "a", 0), ("next", "a", 1)]
    assert announced.of(PartitionLost) == []


class Load:
    """Sends numbered events per key, for as long as it is told to."""

    def __init__(self, stream: Stream[Step], keys: list[str], rng: random.Random) -> None:
        self.sent: Counter[str] = Counter()
        self._stream = stream
        self._keys = keys
        self._rng = rng
        self.stopped = False

    async def some(self, number: int) -> None:
        records = []
        for _ in range(number):
            key = self._rng.choice(self._keys)
            records.append(Step(key=key, n=self.sent[key]))
            self.sent[key] += 1
        await self._stream.send(*records)

    async def until_stopped(self) -> None:
        while not self.stopped:
            await self.some(self._rng.randrange(1, 60))
            await asyncio.sleep(self._rng.uniform(0, 0.01))


@pytest.mark.parametrize("aborts", [False, True], ids=["stops", "aborts"])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_order_is_kept_while_workers_come_and_go_under_load(
    app_name: str, redis_url: str, seed: int, aborts: bool
) -> None:
    """A random schedule. A stop repeats nothing; an abort repeats what was not committed, in order."""
    rng = random.Random(seed)
    group = Group(app_name, redis_url, partitions=6, join_delay=0.02)
    app, stream = group.app()
    load = Load(stream, [f"key-{n}" for n in range(25)], rng)
    workers: dict[int, tuple[Worker, asyncio.Task[int]]] = {}

    async def end(number: int, *, abort: bool) -> None:
        worker, task = workers.pop(number)
        if abort:
            worker.abort()
        else:
            worker.stop("test")
        assert await task == (130 if abort else 0)

    sending = asyncio.create_task(load.until_stopped())
    async with app, asyncio.TaskGroup() as ends:
        for number in range(24):
            if workers and (len(workers) == 4 or rng.random() < 0.45):
                which = rng.choice(sorted(workers))
                ends.create_task(end(which, abort=aborts and rng.random() < 0.6))
                await asyncio.sleep(0)
            else:
                worker = Worker(group.app(str(number))[0])
                workers[number] = worker, asyncio.create_task(worker.run())
            reached = len(group.seen) + rng.randrange(80)
            if workers:
                await eventually(lambda reached=reached: len(group.seen) >= reached)
        load.stopped = True  # not cancelled: what a cancelled send was about to send may be sent or not
        await sending
        if not workers:
            worker = Worker(group.app("last")[0])
            workers[99] = worker, asyncio.create_task(worker.run())
        await eventually(lambda: _all_seen(group, load))
        for number in list(workers):
            await end(number, abort=False)
    found = group.by_key()
    assert group.overlaps == 0, "two workers never run one partition at a time"
    assert set(found) == set(load.sent)
    for key, numbers in found.items():
        assert set(numbers) == set(range(load.sent[key])), "nothing is lost"
        if aborts:
            highest = -1
            for n in numbers:
                assert n <= highest + 1, f"{key}: {n} after {highest}: one was skipped"
                highest = max(highest, n)
            assert all(b <= a + 1 for a, b in itertools.pairwise(numbers)), "what repeats, repeats in order"
        else:
            assert numbers == list(range(load.sent[key])), "nothing is repeated"


def _all_seen(group: Group, load: Load) -> bool:
    latest: dict[str, int] = {}
    for _, key, n in group.seen:
        latest[key] = max(latest.get(key, -1), n)
    return all(latest.get(key) == n - 1 for key, n in load.sent.items() if n)


async def test_a_partition_that_comes_while_a_blocking_read_is_being_ended_is_read_at_once(
    app_name: str, redis_url: str, link: Link
) -> None:
    """1. A partition comes, and the read is ended for it. 2. Before the reader knows that it was, it reads again and
    blocks. 3. Another partition comes: that read must be ended too."""
    held = asyncio.Event()

    async def never(link: Link, feeds: list[Feed]) -> None:
        raise AssertionError("the connection stays")

    class SlowToAnswer(Link):
        async def call(self, *command: Any, **options: Any) -> Any:
            answer = await super().call(*command, **options)
            await held.wait()
            return answer

    lease = Lease(10.0)
    lease.renew(time.monotonic())
    feeds = [Feed(n, 1, f"{app_name}:{n}", lease) for n in range(3)]
    reading, control = Link(Endpoint(redis_url), identify=True), SlowToAnswer(Endpoint(redis_url))
    reader = Reader(reading, control, ReadAhead(8, 1_000_000), Instruments(), lambda: 3, lost_sight=never)
    for feed in feeds:
        feed.begin(b"0-0", 0)
    reader.add(feeds[0])
    running_reader = asyncio.create_task(reader.run())

    async def blocked_again() -> bool:
        return reader._blocked and not reader._changed.is_set()

    await eventually(blocked_again)
    reader.add(feeds[1])  # 1
    await eventually(blocked_again)  # 2
    await link.call("XADD", feeds[2].log, "*", "data", "x")
    reader.add(feeds[2])  # 3
    held.set()
    await eventually(lambda: feeds[2].entries, timeout=2)
    running_reader.cancel()
    await asyncio.gather(running_reader, return_exceptions=True)
    await reader.close()
    await reading.close()
    await control.close()


async def test_after_an_outage_partitions_that_have_no_room_are_looked_at_as_well(
    app_name: str, redis_url: str, link: Link
) -> None:
    """What they have read last may be lost, and the next read of them finds nothing new about the connection."""
    looked_at: list[Feed] = []

    async def lost_sight(link: Link, feeds: list[Feed]) -> None:
        looked_at.extend(feeds)

    lease = Lease(10.0)
    lease.renew(time.monotonic())
    feeds = [Feed(n, 1, f"{app_name}:{n}", lease) for n in range(2)]
    reading = Link(Endpoint(redis_url), identify=True)
    reader = Reader(reading, link, ReadAhead(8, 1_000_000), Instruments(), lambda: 2, lost_sight)
    for feed in feeds:
        feed.begin(b"0-0", 0)
    feeds[1].add([[b"%d-0" % n, [b"data", b"x"]] for n in range(1, 500)], full=False)
    for feed in feeds:
        reader.add(feed)
    running_reader = asyncio.create_task(reader.run())
    await eventually(lambda: reading.client_id is not None and reader._blocked)
    await link.call("CLIENT", "KILL", "ID", reading.client_id)
    await eventually(lambda: looked_at)
    assert looked_at == feeds
    running_reader.cancel()
    await asyncio.gather(running_reader, return_exceptions=True)
    await reader.close()
    await reading.close()


# Project layout


def project(here: Path, package: str) -> None:
    """The guide's layout: an app, and processors in files named streams.py anywhere in the project."""
    (here / package / "billing" / "deep").mkdir(parents=True)
    (here / package / "app.py").write_text(
        f'from runnel import App\n\napp = App(name="myapp", autodiscover="{package}/**/streams.py")\n'
    )
    for folder, name in (("", "top"), ("billing", "orders"), ("billing/deep", "refunds")):
        (here / package / folder / "streams.py").write_text(
            "from runnel import Record\n"
            f"from {package}.app import app\n\n\n"
            f"class {name.title()}(Record):\n    id: int\n\n\n"
            f'{name} = app.stream("{name}", record={name.title()}, partition_by="id")\n\n\n'
            f"@app.processor({name})\n"
            f"async def {name}_processor(events):\n    async for event in events:\n        pass\n"
        )
    (here / package / "billing" / "other.py").write_text('raise RuntimeError("not to be imported")\n')


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return tmp_path


def imported(package: str) -> App:
    module = __import__(f"{package}.app", fromlist=["app"])
    app: App = module.app
    return app


def test_autodiscover_imports_every_module_that_matches(here: Path) -> None:
    project(here, "myproj_found")
    app = imported("myproj_found")
    assert list(app.processors) == []
    assert app.discover() == [
        "myproj_found.billing.deep.streams",
        "myproj_found.billing.streams",
        "myproj_found.streams",
    ]
    assert sorted(app.processors) == ["orders_processor", "refunds_processor", "top_processor"]
    assert app.discover(), "twice does no harm"
    assert len(app.processors) == 3
    assert [processor.name for processor in Worker(app).processors] == list(app.processors)


async def test_a_discovered_processor_runs(here: Path, app_name: str, redis_url: str) -> None:
    project(here, "myproj_run")
    app = imported("myproj_run")
    app.configure(name=app_name, redis_url=redis_url)
    app.discover()
    announced = Recorder(app)
    async with running(app):
        await eventually(lambda: len(announced.of(PartitionGained)) == 3 * 16)


def test_autodiscover_that_matches_nothing_says_where_it_looked(here: Path) -> None:
    app = App(name="myapp", autodiscover="myproj/**/stream.py")
    with pytest.raises(ConfigurationError) as raised:
        app.discover()
    assert str(raised.value) == (
        f'autodiscover="myproj/**/stream.py" matches no Python file in {here}. The pattern is relative to the '
        'directory in which the worker starts; for example "myproj/**/streams.py".'
    )


@pytest.mark.parametrize("pattern", ["/absolute/**/streams.py", "myproj/**streams.py", ""])
def test_a_pattern_that_is_none_is_refused(here: Path, pattern: str) -> None:
    with pytest.raises(ConfigurationError, match="autodiscover="):
        App(name="myapp", autodiscover=pattern).discover()


def test_without_autodiscover_nothing_is_imported(here: Path) -> None:
    assert App(name="myapp").discover() == []


def test_an_error_in_a_discovered_module_is_the_users_own(here: Path) -> None:
    (here / "myproj_bad").mkdir()
    (here / "myproj_bad" / "streams.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        App(name="myapp", autodiscover="myproj_bad/**/streams.py").discover()


async def test_a_lease_does_not_revive_when_a_member_that_was_evicted_is_back(app_name: str, redis_url: str) -> None:
    """The heartbeat thread joins again while the worker's loop is busy, and has not heard of the eviction."""
    app = App(name=app_name, redis_url=redis_url, partition_count=2, session_timeout=1.0, prefetch_count=5_000)
    stream = app.stream("steps", record=Step, partition_by="key")
    told = Recorder(app)
    back = threading.Event()
    handled: list[tuple[bool, bool]] = []

    def hear(announcement: object) -> None:
        if isinstance(announcement, MemberJoined) and told.of(MemberEvicted):
            back.set()

    app.instruments.subscribe(hear)
    keys = ControlKeys.of(app_name, "steps", "proc")
    server = redis.Redis.from_url(redis_url)

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            if step.n < 0 and not back.is_set():
                while len(handled) < 1_000:  # noqa: ASYNC110  the other partition goes on meanwhile
                    await asyncio.sleep(0)
                server.delete(keys.members)
                assert back.wait(10)
            handled.append((back.is_set(), bool(told.of(PartitionLost))))

    one, other = (
        next(key for key in map(str, itertools.count()) if stream.partition_of(Step(key=key, n=0)) == partition)
        for partition in range(2)
    )
    async with running(app):
        await stream.send(Step(key=other, n=-1), *(Step(key=one, n=n) for n in range(20_000)))
        await eventually(lambda: back.is_set() and len(handled) > 20_000, timeout=20)
    # The one that was in progress.
    assert handled.count((True, False)) == 1, "events were handed out under the lease of the seat that was lost"


async def test_a_lease_is_not_renewed_before_the_loop_has_seen_what_it_was_told(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was told may be that a partition is wanted back, which is taken from it after a session."""
    group.settings["heartbeat_interval"] = 0.05
    app, stream = group.app()
    unheard: list[tuple[Any, ...]] = []
    async with inspecting(app) as redis, running(app) as worker:
        await eventually(lambda: worker.members and len(worker.members[0].consumers) == group.partitions)
        lease = worker.members[0].holder.lease
        with monkeypatch.context() as patched:
            patched.setattr(Heartbeats, "_deliver", lambda *answer: unheard.append(answer))
            await redis.link.call("HINCRBY", stream.keys.control("proc").group, "epoch", 1)
            await eventually(lambda: any(beat.full for _, _, beat, _ in unheard))
            deadline, number = lease.deadline, len(unheard)
            await eventually(lambda: len(unheard) >= number + 3)
            assert lease.deadline == deadline
        for heartbeats, *answer in unheard:
            heartbeats._deliver(*answer)
        await eventually(lambda: lease.deadline > deadline)


async def test_a_partition_that_was_moved_by_hand_and_then_lost_does_not_come_back_to_life(
    app_name: str, redis_url: str
) -> None:
    """1. Somebody moves the position, so the partition is to be acquired again after the event in progress. 2. It is
    lost. 3. The function swallows that, and ends. 4. Acquiring it now would keep it from its next owner for ever."""
    app = App(name=app_name, redis_url=redis_url, partition_count=1, session_timeout=1.0)
    stream = app.stream("steps", record=Step, partition_by="key")
    told = Recorder(app)
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)
            if seen == [0]:
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()

    keys = ControlKeys.of(app_name, "steps", "proc")
    async with inspecting(app) as redis, running(app) as worker:
        await stream.send(*(Step(key="a", n=n) for n in range(3)))
        await eventually(lambda: seen == [0])
        await reset(redis.link, stream.keys, "proc", 0, b"0-0", 0)
        await publish(redis.link, keys, MOVED)
        await eventually(lambda: told.of(PartitionRewound))
        await redis.link.call("DEL", keys.members)
        await eventually(lambda: seen == [0, 0, 1, 2])
        assert worker.members[0].consumers[0].feed.done != b"0-0"


async def test_a_rollback_is_counted_once(app_name: str, redis_url: str) -> None:
    """Where a partition has progress and its position is to be compared at the same time."""
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    told = Recorder(app)
    seen: list[int] = []
    positions = stream.keys.positions(0, "proc")

    async with inspecting(app) as redis:

        @app.processor(stream)
        async def proc(events):
            async for step in events.records():
                seen.append(step.n)
                if seen == [0, 1]:
                    feed = worker.members[0].consumers[0].feed
                    await feed.flush(feed)
                    await redis.link.call("HDEL", positions, 0)
                    worker.members[0]._on_moved()

        async with running(app) as worker:
            await stream.send(*(Step(key="a", n=n) for n in range(3)))
            await eventually(lambda: told.of(PartitionRewound) and seen[-1] == 2)
        assert await redis.link.call("HGET", positions, "rollbacks:0") == b"1"
    assert len(told.of(PartitionRewound)) == 1


# An abort


async def test_an_abort_ends_what_has_swallowed_the_loss_of_its_partition(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    swallowed = asyncio.Event()
    ended: list[str] = []

    @app.processor(stream)
    async def proc(events):
        async for _ in events:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    ended.append("cancelled again")

    await stream.send(Step(key="a", n=0))
    worker = Worker(app)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: worker.members and worker.members[0].in_flight)
    (consumer,) = worker.members[0].consumers
    worker.members[0].fenced(consumer.feed)
    await asyncio.wait_for(swallowed.wait(), 10)
    worker.abort()
    assert await asyncio.wait_for(task, 10) == 130
    assert ended == ["cancelled again"]
    await app.aclose()


async def test_an_abort_does_not_wait_for_what_cannot_be_cancelled(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runnel._worker.worker.ABORT_TIMEOUT", 0.1)
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    gate = asyncio.Event()

    @app.processor(stream)
    async def proc(events):
        async for _ in events:
            while not gate.is_set():
                with suppress(asyncio.CancelledError):
                    await gate.wait()

    await stream.send(Step(key="a", n=0))
    worker = Worker(app)
    task = asyncio.create_task(worker.run())
    await eventually(lambda: worker.members and worker.members[0].in_flight)
    (consumer,) = worker.members[0].consumers
    worker.abort()
    assert await asyncio.wait_for(task, 10) == 130
    gate.set()
    await asyncio.wait_for(consumer.task, 10)
    await app.aclose()


async def test_a_worker_stops_while_handlers_hold_all_threads_of_the_executor(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    release = threading.Event()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    blocked = asyncio.create_task(asyncio.to_thread(release.wait))
    try:
        async with running(app):
            pass
    finally:
        release.set()
        await blocked
