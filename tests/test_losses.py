"""What somebody removes from Redis under a running worker is noticed, said, and does not keep it from going on."""

import asyncio
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

from harness import Inspector, Recorder, eventually, inspecting, running
from runnel import App, Record
from runnel._redis import scripts
from runnel._worker import committer, member
from runnel.admin import apply_reset, pause_processor, plan_reset, resume_processor
from runnel.errors import RedisUnavailable
from runnel.instruments import (
    LogReplaced,
    LossDetected,
    PartitionGained,
    PartitionRewound,
    PartitionsPaused,
    PartitionsResumed,
    RedisRecovered,
)
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Step(Record):
    n: int


class Case:
    """An app with one partition, whose processor waits at a gate."""

    def __init__(self, name: str, url: str) -> None:
        self.app = App(name=name, redis_url=url, partition_count=1, prefetch_count=2)
        self.stream: Stream[Step] = self.app.stream("steps", record=Step, partition_by=lambda step: "a")
        self.announced = Recorder(self.app)
        self.seen: list[int] = []
        self.gate = asyncio.Event()
        self.gate.set()

        @self.app.processor(self.stream)
        async def proc(events):
            async for step in events.records():
                self.seen.append(step.n)
                await self.gate.wait()

    async def send(self, first: int, last: int) -> None:
        await self.stream.send(*(Step(n=n) for n in range(first, last + 1)))

    async def reads_ahead(self, redis: Inspector, number: int) -> list[str]:
        """The ids of so many events, of which the first is committed and the second in progress, at the gate."""
        await self.send(1, 1)
        await self.committed(redis, 1)
        self.gate.clear()
        await self.send(2, number)
        await eventually(lambda: self.seen[-1] == 2)
        await asyncio.sleep(0.1)  # it has read ahead what it can
        return [entry_id for entry_id, _ in await redis.entries(self.stream, 0)]

    async def committed(self, redis: Inspector, number: int) -> None:
        """Wait until the event of this number, the last one, is committed."""
        await eventually(lambda: self.seen[-1:] == [number])
        last, _ = (await redis.entries(self.stream, 0))[-1]

        async def reached() -> bool:
            return await redis.position(self.stream, "proc", 0) == last

        await eventually(reached)

    async def processed(self, redis: Inspector, number: int) -> None:
        """Wait until so many events are committed."""

        async def reached() -> bool:
            return await redis.count(self.stream, "proc") == number

        await eventually(reached)


@pytest.fixture
async def case(app_name: str, redis_url: str):
    case = Case(app_name, redis_url)
    yield case
    await case.app.aclose()


@pytest.mark.parametrize("processed", [0, 3])
async def test_a_log_that_is_deleted_under_its_owner_is_announced_and_the_new_one_processed(
    case: Case, processed: int
) -> None:
    async with inspecting(case.app) as redis, running(case.app):
        if processed:
            await case.send(1, processed)
            await case.committed(redis, processed)
        case.gate.clear()
        await case.send(10, 100)
        await eventually(lambda: case.seen[-1:] == [10])
        await redis.link.call("DEL", case.stream.keys.log(0))
        await case.send(200, 205)
        case.gate.set()
        await eventually(lambda: case.seen[-1] == 205)
        await eventually(lambda: case.announced.of(LogReplaced))
    assert [announcement.partition for announcement in case.announced.of(LogReplaced)] == [0]
    new = [n for n in case.seen if n >= 200]
    assert sorted(set(new)) == list(range(200, 206))
    assert new[-6:] == list(range(200, 206))


async def test_a_log_that_is_deleted_while_nothing_happens_is_announced(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "LOSSES_INTERVAL", 0.05)
    async with inspecting(case.app) as redis, running(case.app):
        await case.send(1, 3)
        await case.committed(redis, 3)
        await redis.link.call("DEL", case.stream.keys.log(0))
        await eventually(lambda: case.announced.of(PartitionRewound) or case.announced.of(LogReplaced))
        await case.send(4, 5)
        await eventually(lambda: case.seen == [1, 2, 3, 4, 5])


async def test_a_log_that_is_deleted_together_with_the_positions_is_announced_by_who_knew_it(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "LOSSES_INTERVAL", 0.05)
    async with inspecting(case.app) as redis, running(case.app):
        await case.send(1, 3)
        await case.committed(redis, 3)
        await redis.link.call("DEL", case.stream.keys.log(0), case.stream.keys.positions(0, "proc"))
        [rewound] = await eventually(lambda: case.announced.of(PartitionRewound))
        await case.send(4, 5)
        await eventually(lambda: case.seen == [1, 2, 3, 4, 5])
    assert rewound.stored == "0-0"


async def test_who_is_fenced_by_a_token_that_nobody_has_goes_on(case: Case) -> None:
    positions = case.stream.keys.positions(0, "proc")
    async with inspecting(case.app) as redis, running(case.app):
        await case.send(1, 3)
        await case.processed(redis, 3)
        token, _, rest = (await redis.link.call("HGET", positions, 0)).partition(b":")
        await redis.link.call("HSET", positions, 0, b"%d:%s" % (int(token) + 1_000_000, rest))
        await case.send(4, 5)
        await case.processed(redis, 5)


@pytest.mark.parametrize("granted_between", [False, True])
async def test_what_was_handed_over_and_comes_back_with_a_rollback_is_announced(
    case: Case, monkeypatch: pytest.MonkeyPatch, granted_between: bool
) -> None:
    """1. An owner commits, and hands over. 2. The server loses both. 3. It has the partition again by the same token,
    and a new feed."""
    keys, positions = case.stream.keys.control("proc"), case.stream.keys.positions(0, "proc")
    acquire = scripts.acquire

    async def acquire_in_vain(link: Any, stream: Any, processor: str, partition: int, token: int, *rest: Any) -> Any:
        if token != case.announced.of(PartitionGained)[0].token:
            raise RedisUnavailable("away", "")
        return await acquire(link, stream, processor, partition, token, *rest)

    async with inspecting(case.app) as redis, running(case.app) as worker:

        async def assign(name: str) -> None:
            await redis.link.call("HSET", keys.targets, 0, name)
            await redis.link.call("HINCRBY", keys.group, "epoch", 1)

        await case.send(1, 3)
        await case.processed(redis, 3)
        kept = {
            key: await redis.link.call("DUMP", key)
            for key in (keys.group, keys.members, keys.targets, keys.owners, positions)
        }
        await case.send(4, 6)
        await case.processed(redis, 6)
        await assign("another")  # 1

        async def handed_over() -> bool:
            return not await redis.link.call("EXISTS", keys.owners)

        await eventually(handed_over)
        if granted_between:
            monkeypatch.setattr(scripts, "acquire", acquire_in_vain)
            await assign(worker.name)
            await eventually(lambda: worker.members[0].consumers)
        await redis.link.call("MULTI")  # 2
        for key, value in kept.items():
            await redis.link.call("RESTORE", key, 0, value, "REPLACE")
        await redis.link.call("EXEC")
        await eventually(lambda: case.seen == [1, 2, 3, 4, 5, 6, 4, 5, 6])  # 3
        assert await redis.link.call("HGET", positions, "rollbacks:0") == b"1"
    [rewound] = case.announced.of(PartitionRewound)
    assert rewound.reason == "rollback"
    first, second = case.announced.of(PartitionGained)
    assert first.token == second.token


@pytest.mark.parametrize("compared", [False, True])
async def test_a_rollback_while_a_partition_is_parked_is_announced_once(case: Case, compared: bool) -> None:
    positions = case.stream.keys.positions(0, "proc")
    async with inspecting(case.app) as redis, running(case.app) as worker:
        await case.send(1, 3)
        await case.processed(redis, 3)
        kept = await redis.link.call("HGET", positions, 0)
        await case.send(4, 6)
        await case.processed(redis, 6)
        await pause_processor(case.app, "proc")
        await eventually(lambda: case.announced.of(PartitionsPaused))
        await redis.link.call("HSET", positions, 0, kept)
        if compared:
            worker.members[0]._on_moved()
            await eventually(lambda: case.announced.of(PartitionRewound))
        await resume_processor(case.app, "proc")
        await eventually(lambda: case.seen == [1, 2, 3, 4, 5, 6, 4, 5, 6])
        assert await redis.link.call("HGET", positions, "rollbacks:0") == b"1"
    [rewound] = case.announced.of(PartitionRewound)
    assert rewound.reason == "rollback"


async def test_what_a_new_primary_has_below_an_entry_that_was_lost_is_not_skipped(case: Case) -> None:
    """1. We read 2 from a primary. 2. Another takes over, without it, and gives 3 an id below that of 2, 4 one above.
    3. We read from it behind 2: boom."""
    async with inspecting(case.app) as redis, running(case.app):
        log = case.stream.keys.log(0)

        async def append(n: int, entry_id: str) -> None:
            await redis.link.call("XADD", log, entry_id, "data", Step(n=n).model_dump_json())

        await append(1, "1-0")
        await case.committed(redis, 1)
        kept = await redis.link.call("DUMP", log)
        case.gate.clear()
        await append(2, "5-0")
        await eventually(lambda: case.seen == [1, 2])  # 1
        await redis.link.call("MULTI")  # 2
        await redis.link.call("RESTORE", log, 0, kept, "REPLACE")
        await append(3, "4-0")
        await append(4, "6-0")
        await redis.link.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await redis.link.call("EXEC")
        await eventually(lambda: "read" in [one.role for one in case.announced.of(RedisRecovered)])  # 3
        case.gate.set()
        await eventually(lambda: case.seen[-1] == 4)
        [rewound] = case.announced.of(PartitionRewound)
    assert case.seen == [1, 2, 3, 4]
    assert (rewound.reason, rewound.expected, rewound.stored) == ("rollback", "5-0", "1-0")


async def test_a_position_is_not_taken_anew_while_a_commit_is_on_its_way(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be applied to the position of the new log, which would then be set back."""
    monkeypatch.setattr(member, "LOSSES_INTERVAL", 0.05)
    on_its_way, noticed, go_on = asyncio.Event(), asyncio.Event(), asyncio.Event()
    happened: list[str] = []

    async def held_up(*args: Any) -> Any:
        on_its_way.set()
        await go_on.wait()
        answers = await scripts.commit(*args)
        happened.append("committed")
        return answers

    async def acquire(*args: Any) -> Any:
        happened.append("acquired")
        return await scripts.acquire(*args)

    async def losses(*args: Any) -> Any:
        answers = await scripts.losses(*args)
        if min(answers) < 0:
            noticed.set()
        return answers

    monkeypatch.setattr(committer, "commit", held_up)
    monkeypatch.setattr(member, "scripts", SimpleNamespace(**vars(scripts) | {"acquire": acquire, "losses": losses}))
    async with inspecting(case.app) as redis, running(case.app):
        await case.send(1, 3)
        await eventually(lambda: case.seen == [1, 2, 3])
        await on_its_way.wait()
        await redis.link.call("DEL", case.stream.keys.log(0))
        await case.send(4, 5)
        await noticed.wait()
        await asyncio.sleep(0.2)  # it would acquire now
        go_on.set()
        await eventually(lambda: case.seen[-1] == 5)
        await eventually(lambda: len(happened) >= 3)
    assert happened[:3] == ["acquired", "committed", "acquired"]


@pytest.mark.parametrize("remove", ["hole", "end", "all"])
async def test_entries_that_are_removed_unread_are_counted_once(
    case: Case, monkeypatch: pytest.MonkeyPatch, remove: str
) -> None:
    monkeypatch.setattr(member, "LOSSES_INTERVAL", 0.05)
    async with inspecting(case.app) as redis:
        async with running(case.app):
            ids = await case.reads_ahead(redis, 11)
            log = case.stream.keys.log(0)
            command = {
                "hole": ("XDEL", log, *ids[8:10]),
                "end": ("XDEL", log, *ids[9:]),
                "all": ("XTRIM", log, "MAXLEN", 0),
            }
            await redis.link.call(*command[remove])
            case.gate.set()
            await eventually(lambda: case.announced.of(LossDetected))
            await eventually(lambda: redis.position(case.stream, "proc", 0))
        lost = sum(announcement.entries for announcement in case.announced.of(LossDetected))
        assert len(case.seen) + lost == 11
        before = len(case.announced.of(LossDetected))
        async with running(case.app):
            await case.send(20, 20)
            await eventually(lambda: case.seen[-1] == 20)
    assert len(case.announced.of(LossDetected)) == before


async def test_what_was_read_ahead_and_is_removed_before_it_is_processed_is_announced(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The owner finds that what lies behind its buffer is removed, and so is what it holds. 2. It stops."""
    monkeypatch.setattr(member, "LOSSES_INTERVAL", 0.05)
    async with inspecting(case.app) as redis:
        async with running(case.app) as worker:
            ids = await case.reads_ahead(redis, 30)
            await redis.link.call("XTRIM", case.stream.keys.log(0), "MINID", ids[25])
            await eventually(lambda: case.announced.of(LossDetected))
            [consumer] = worker.members[0].consumers
            worker.stop("test")
            await eventually(lambda: consumer.feed.ended)
            case.gate.set()
        async with running(case.app):
            await case.send(40, 40)
            await eventually(lambda: case.seen[-1] == 40)
    assert case.seen == [1, 2, *range(26, 31), 40]
    assert sum(announcement.entries for announcement in case.announced.of(LossDetected)) == 23


async def test_a_loss_that_is_not_counted_yet_is_not_hidden_by_a_commit(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. The owner finds that entries are removed. 2. It commits, and ends before it has counted them."""
    monkeypatch.setattr(member, "LOSSES_INTERVAL", 0.05)
    count_loss, held_up = scripts.count_loss, asyncio.Event()

    async def late(*arguments: Any) -> bool:
        held_up.set()
        await asyncio.sleep(60)
        return await count_loss(*arguments)

    monkeypatch.setattr(scripts, "count_loss", late)
    async with inspecting(case.app) as redis:
        async with running(case.app) as worker:
            ids = await case.reads_ahead(redis, 30)
            await redis.link.call("XTRIM", case.stream.keys.log(0), "MINID", ids[25])
            await asyncio.wait_for(held_up.wait(), 10)
            case.gate.set()

            async def committed() -> bool:
                return await redis.position(case.stream, "proc", 0) >= ids[2]

            await eventually(committed)
            worker.abort()
        monkeypatch.setattr(scripts, "count_loss", count_loss)
        async with running(case.app):
            await eventually(lambda: case.announced.of(LossDetected))
            await eventually(lambda: case.seen[-1] == 30)
    lost = sum(announcement.entries for announcement in case.announced.of(LossDetected))
    assert len({*case.seen}) + lost == 30


async def test_a_move_by_hand_of_what_waits_for_an_old_function_to_end_is_no_rollback(case: Case) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @case.app.processor(case.stream)
    async def slow(events):
        async for _ in events:
            begun.set()
            with suppress(asyncio.CancelledError):
                await ended.wait()
            await ended.wait()

    async with running(case.app, ["slow"]) as worker:
        await case.send(1, 2)
        [member_] = worker.members
        await asyncio.wait_for(begun.wait(), 10)
        [consumer] = member_.consumers
        member_.fenced(consumer.feed)
        await eventually(lambda: [one for one in member_.consumers if one is not consumer])
        await apply_reset(case.app, "slow", await plan_reset(case.app, "slow", "$"))
        [again] = member_.consumers
        await eventually(lambda: again.feed.probed or case.announced.of(PartitionRewound))
        ended.set()
        await eventually(lambda: len(case.announced.of(PartitionGained)) == 2)
    assert not case.announced.of(PartitionRewound)


async def test_who_is_paused_and_resumed_while_its_position_is_taken_anew_can_be_moved_again(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def acquire(*args: Any) -> Any:
        answer = await scripts.acquire(*args)
        asked.set()
        await go_on.wait()
        return answer

    async def move() -> None:
        await apply_reset(case.app, "proc", await plan_reset(case.app, "proc", "earliest"))

    async with inspecting(case.app) as redis, running(case.app):
        await case.send(1, 2)
        await case.processed(redis, 2)
        monkeypatch.setattr(member, "scripts", SimpleNamespace(**vars(scripts) | {"acquire": acquire}))
        await move()
        await asyncio.wait_for(asked.wait(), 10)
        await pause_processor(case.app, "proc")
        await eventually(lambda: case.announced.of(PartitionsPaused))
        await resume_processor(case.app, "proc")
        await eventually(lambda: case.announced.of(PartitionsResumed))
        go_on.set()
        await eventually(lambda: case.seen == [1, 2, 1, 2])
        await move()
        await eventually(lambda: case.seen == [1, 2, 1, 2, 1, 2])


async def test_positions_that_are_lost_are_taken_from_the_consumer_group(case: Case) -> None:
    async with inspecting(case.app) as redis, running(case.app):
        await case.send(1, 50)
        await case.committed(redis, 50)
        await redis.link.call("DEL", case.stream.keys.positions(0, "proc"))
        await case.send(51, 52)
        await eventually(lambda: case.seen[-1] == 52)
        await eventually(lambda: case.announced.of(PartitionRewound))
    assert min(case.seen[50:]) >= 50  # not everything once more
