"""Sending: one or many, in order, and what happens when a partition is full."""

import asyncio
import itertools
import os
import random
import time
from typing import Any

import pytest

from harness import Recorder, eventually, inspecting, running
from runnel import App, Record
from runnel._redis import producer
from runnel._redis.link import Link
from runnel._redis.scripts import AppendStatus
from runnel._redis.sending import Sending
from runnel.errors import RecordError, RedisUnavailable, StreamFull
from runnel.instruments import LossDetected, SequenceGap
from runnel.interfaces import Serializer
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Step(Record):
    key: str
    n: int


class Mixed(Record):
    key: int
    n: int


def steps(key: str, number: int, start: int = 0) -> list[Step]:
    return [Step(key=key, n=n) for n in range(start, start + number)]


def declare(app_name: str, redis_url: str, **options: object) -> tuple[App, Stream[Step], list[int]]:
    """An app with a stream, and a processor that is registered when it runs for the first time."""
    app = App(name=app_name, redis_url=redis_url, **{"partition_count": 1, **options})
    stream = app.stream("steps", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(stream)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)

    return app, stream, seen


async def register(app: App, stream: Stream[Step]) -> None:
    """Run the processor once, so that what it has not processed is kept for it."""
    async with inspecting(app) as redis, running(app):
        await eventually(lambda: redis.link.call("SISMEMBER", stream.keys.registered(0), "proc"))


async def numbers(app: App, stream: Stream[Step], partition: int = 0) -> list[int]:
    """What is in the log."""
    async with inspecting(app) as redis:
        return [
            stream.codec.decode([b"data", fields[b"data"]]).n for _, fields in await redis.entries(stream, partition)
        ]


async def test_sending_one_returns_its_id(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        ids = await stream.send(Step(key="a", n=1))
        async with inspecting(app) as redis:
            assert [entry_id for entry_id, _ in await redis.entries(stream, 0)] == ids


async def test_sending_nothing_is_no_error(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url) as app:
        assert await app.stream("steps", record=Step, partition_by="key").send() == []


async def test_the_ids_come_in_the_order_of_the_records_over_all_partitions(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=4) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        records = [Step(key=f"key-{n % 9}", n=n) for n in range(300)]
        ids = await stream.send(*records)
        async with inspecting(app) as redis:
            stored = {
                (partition, entry_id): stream.codec.decode([b"data", fields[b"data"]])
                for partition in range(4)
                for entry_id, fields in await redis.entries(stream, partition)
            }
    assert len({partition for partition, _ in stored}) > 1
    assert [stored[stream.partition_of(r), i] for r, i in zip(records, ids, strict=True)] == records


async def test_more_than_one_append_holds_arrive_in_order(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        ids = await stream.send(*steps("a", 2500))
        assert len(set(ids)) == 2500
        assert await numbers(app, stream) == list(range(2500))


async def test_large_records_arrive_in_order(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        stream = app.stream("steps", record=Step, partition_by="n", hasher=lambda _: 0)
        await stream.send(*(Step(key="x" * 300_000, n=n) for n in range(12)))
        assert await numbers(app, stream) == list(range(12))


async def test_concurrent_sends_keep_the_order_in_which_they_were_called(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=3) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        keys = [f"key-{number}" for number in range(10)]
        async with asyncio.TaskGroup() as group:
            for n in range(60):
                for key in keys:
                    group.create_task(stream.send(Step(key=key, n=n)))
        found: dict[str, list[int]] = {key: [] for key in keys}
        async with inspecting(app) as redis:
            for partition in range(3):
                for _, fields in await redis.entries(stream, partition):
                    step = stream.codec.decode([b"data", fields[b"data"]])
                    found[step.key].append(step.n)
    assert found == {key: list(range(60)) for key in keys}


async def test_a_cancelled_send_leaves_the_others_in_order(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        tasks = [asyncio.create_task(stream.send(Step(key="a", n=n))) for n in range(200)]
        await asyncio.sleep(0)
        for task in tasks[::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        found = await numbers(app, stream)
        assert found == sorted(set(found))
        assert set(found) >= {n for n in range(200) if n % 7}


@pytest.mark.parametrize("rounds", [1, 3])
async def test_a_thousand_concurrent_sends_keep_the_order_of_their_calls_and_get_their_own_ids(
    app_name: str, redis_url: str, rounds: int
) -> None:
    """Enough for two connections at a time: part of it is on its way before the last of the calls."""
    async with App(name=app_name, redis_url=redis_url, partition_count=8) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        sent: list[tuple[Step, str]] = []
        for number in range(rounds):
            records = [Step(key=f"key-{n % 23}", n=n) for n in range(number * 1200, (number + 1) * 1200)]
            answers = await asyncio.gather(*(stream.send(record) for record in records))
            sent += [(record, entry_id) for record, [entry_id] in zip(records, answers, strict=True)]
        async with inspecting(app) as redis:
            for partition in range(8):
                stored = [
                    (Step.model_validate_json(fields[b"data"]), entry_id)
                    for entry_id, fields in await redis.entries(stream, partition)
                ]
                assert stored == [item for item in sent if stream.partition_of(item[0]) == partition]


async def test_what_is_left_of_a_cancelled_send_is_not_sent(app_name: str, redis_url: str) -> None:
    app, stream, seen = declare(app_name, redis_url, partition_size=10)
    await register(app, stream)
    cancelled = asyncio.create_task(stream.send(*steps("a", 25)))
    later = asyncio.create_task(stream.send(Step(key="a", n=25)))
    async with inspecting(app) as redis:
        await eventually(lambda: redis.link.call("XLEN", stream.keys.log(0)))
    cancelled.cancel()
    await asyncio.wait([cancelled])
    async with running(app):
        assert len(await later) == 1
        await eventually(lambda: seen and seen[-1] == 25)
    assert seen == [*range(10), 25]


async def test_a_send_is_on_its_way_when_it_is_called_in_the_order_of_the_calls(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        first = stream.send(*steps("a", 3))
        second = stream.send(Step(key="a", n=3))
        third = stream.send(*steps("a", 3, start=4))
        last = await third
        found = [*await first, *await second, *last]
        assert await numbers(app, stream) == list(range(7))
        async with inspecting(app) as redis:
            assert [entry_id for entry_id, _ in await redis.entries(stream, 0)] == found


@pytest.mark.parametrize("number", [1, 3])
async def test_a_send_may_be_a_task_or_wait_in_a_group_or_for_so_long(
    app_name: str, redis_url: str, number: int
) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=2) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        task = asyncio.create_task(stream.send(*steps("a", number)))
        async with asyncio.TaskGroup() as group:
            grouped = group.create_task(stream.send(*steps("a", number, start=10)))
        in_time = await asyncio.wait_for(stream.send(*steps("a", number, start=20)), 10)
        assert [len(ids) for ids in (await task, grouped.result(), in_time)] == [number] * 3


async def test_who_awaits_a_send_of_another_event_loop_does_not_send_it() -> None:
    other = asyncio.new_event_loop()
    begun: list[bool] = []
    sending = Sending(loop=other)
    sending.begin = lambda: begun.append(True)
    with pytest.raises(RuntimeError):
        await sending
    assert not begun
    other.close()


async def test_who_awaits_a_send_has_it_sent_at_once_and_tasks_of_sends_go_together(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []

    async def count(link: object, keys: object, slot_group: int, batches: Any, **rest: Any) -> Any:
        together.extend(len(batch.entries) for batch in batches)
        return await append(link, keys, slot_group, batches, **rest)

    append = producer.append
    monkeypatch.setattr(producer, "append", count)
    app, stream, _ = declare(app_name, redis_url)
    async with app:
        await stream.send(Step(key="a", n=0))  # connects
        sending = stream.send(Step(key="a", n=1))
        assert together == [1]
        waits_for = next(sending.__await__())
        assert together == [1, 1]
        await asyncio.gather(waits_for, *(asyncio.create_task(stream.send(step)) for step in steps("a", 10)))
        assert together == [1, 1, 10]

        async def send_all(first: int) -> None:
            for n in range(first, first + 20):
                await stream.send(Step(key="a", n=n))

        together.clear()
        await asyncio.gather(send_all(0), send_all(20), send_all(40))  # a round trip for all of them, not two
        assert sum(together) == 60
        assert len(together) <= 22


@pytest.mark.parametrize("records", [[1], [1, 2]])
async def test_what_is_wrong_with_a_record_is_raised_where_it_is_awaited(
    app_name: str, redis_url: str, records: list[int]
) -> None:
    async with App(name=app_name, redis_url=redis_url) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        sending = stream.send(*records)  # type: ignore[arg-type]
        with pytest.raises(RecordError, match="takes records of Step, not int"):
            await sending


@pytest.mark.parametrize("number", [1, 3])
async def test_a_send_that_waits_for_room_is_given_up_after_a_timeout(
    app_name: str, redis_url: str, number: int
) -> None:
    app, stream, seen = declare(app_name, redis_url, partition_size=10)
    await register(app, stream)
    await stream.send(*steps("a", 10))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(stream.send(*steps("a", number, start=10)), 0.1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.create_task(stream.send(*steps("a", number, start=10))), 0.1)
    async with running(app):
        await stream.send(Step(key="a", n=20))
        await eventually(lambda: seen[-1] == 20)
    assert seen == [*range(10), 20]


def test_a_send_may_be_made_before_there_is_an_event_loop(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    sending = app.stream("steps", record=Step, partition_by="key").send(Step(key="a", n=1))

    async def main() -> list[str]:
        async with app:
            return await sending

    assert len(asyncio.run(main())) == 1


def test_a_send_that_has_an_event_loop_of_its_own_leaves_nothing_open(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a synchronous web view."""
    open_links: set[object] = set()
    connect, close = Link._connect, Link.close

    async def connecting(link: Link, timeout: float) -> Any:
        open_links.add(link)
        return await connect(link, timeout)

    async def closing(link: Link) -> None:
        await close(link)
        open_links.discard(link)

    monkeypatch.setattr(Link, "_connect", connecting)
    monkeypatch.setattr(Link, "close", closing)
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    before = len(os.listdir("/dev/fd"))
    for n in range(20):
        asyncio.run(stream.send(Step(key="a", n=n)))
    assert open_links == set()
    assert app._outboxes == {}
    assert len(os.listdir("/dev/fd")) <= before
    assert asyncio.run(numbers(app, stream)) == list(range(20))


def test_an_event_loop_that_is_used_for_sending_otherwise_stays_connected(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    sending = stream.send(Step(key="a", n=1))

    async def main() -> None:
        async with app:
            await stream.send(Step(key="a", n=0))
            outbox = app._outbox()
            await sending
            assert app._outbox() is outbox

    asyncio.run(main())


def test_event_loops_that_are_closed_are_forgotten(app_name: str) -> None:
    app = App(name=app_name, redis_url="redis://127.0.0.1:1", send_timeout=0.01)
    stream = app.stream("steps", record=Step, partition_by="key")

    async def main() -> None:
        with pytest.raises(RedisUnavailable):
            await stream.send(Step(key="a", n=0))

    for _ in range(5):
        asyncio.run(main())
        assert len(app._outboxes) == 1


async def test_a_clock_of_the_server_that_jumps_an_hour_is_not_taken_for_a_loss(app_name: str, redis_url: str) -> None:
    app, stream, _ = declare(app_name, redis_url)
    announced = Recorder(app)
    async with app, inspecting(app) as redis:
        await stream.send(Step(key="a", n=1))
        sequences = await redis.link.call("KEYS", stream.keys.sequence(0, "") + "*")
        assert len(sequences) == 1
        left = await redis.link.call("PTTL", sequences[0])
        await redis.link.call("PEXPIRE", sequences[0], left - 3_600_000)
        await stream.send(Step(key="a", n=2))
        assert await numbers(app, stream) == [1, 2]
    assert announced.of(SequenceGap) == []


async def test_closing_an_app_sends_what_is_under_way(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")
    await stream.send(Step(key="a", n=0))
    task = asyncio.create_task(stream.send(*steps("a", 2000, start=1)))
    await asyncio.sleep(0)
    await app.aclose()
    assert len(await task) == 2000
    assert await numbers(app, stream) == list(range(2001))


def test_an_app_sends_from_one_event_loop_after_another(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key")

    async def send(n: int) -> list[int]:
        async with app:
            await stream.send(Step(key="a", n=n))
            return await numbers(app, stream)

    assert [asyncio.run(send(n)) for n in range(3)] == [[0], [0, 1], [0, 1, 2]]


async def test_sending_without_a_server_fails_with_the_way_out(app_name: str) -> None:
    async with App(name=app_name, redis_url="redis://127.0.0.1:1", send_timeout=0.2) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        with pytest.raises(RedisUnavailable, match=r"Cannot reach redis://127\.0\.0\.1:1 \(connection refused\)\."):
            await stream.send(Step(key="a", n=1))


# How long a stream gets


async def test_a_stream_without_a_processor_is_capped(app_name: str, redis_url: str) -> None:
    async with App(name=app_name, redis_url=redis_url, partition_count=1, partition_size=100) as app:
        stream = app.stream("steps", record=Step, partition_by="key")
        for start in range(0, 2000, 50):
            await stream.send(*steps("a", 50, start=start))
        found = await numbers(app, stream)
        assert found == list(range(2000 - len(found), 2000))
        assert 100 <= len(found) <= 300, "MAXLEN ~ keeps whole nodes of about 100 entries"


async def test_what_is_processed_is_trimmed(app_name: str, redis_url: str) -> None:
    app, stream, seen = declare(app_name, redis_url, partition_size=200)
    await register(app, stream)
    async with running(app):
        for start in range(0, 2000, 100):
            await stream.send(*steps("a", 100, start=start))
        await eventually(lambda: len(seen) == 2000)
        assert len(await numbers(app, stream)) <= 400
    assert seen == list(range(2000))


async def test_a_full_partition_refuses_with_on_full_raise(app_name: str, redis_url: str) -> None:
    app, stream, seen = declare(app_name, redis_url, partition_size=10, on_full="raise")
    await register(app, stream)
    await stream.send(*steps("a", 10))
    with pytest.raises(StreamFull) as raised:
        await stream.send(Step(key="a", n=10))
    assert str(raised.value) == (
        'Partition 0 of stream "steps" is full: 10 entries are not yet processed by "proc". 0 of 1 events for it were '
        'appended. Start more workers, raise partition_size, or use on_full="trim" if the oldest events may be dropped.'
    )
    assert await numbers(app, stream) == list(range(10)), "nothing is trimmed that is not processed"
    async with running(app):
        await eventually(lambda: len(seen) == 10)
    assert await stream.send(Step(key="a", n=10))
    async with running(app):
        await eventually(lambda: len(seen) == 11)
    assert seen == list(range(11))


async def test_a_full_partition_waits_for_room_in_vain_only_so_long(app_name: str, redis_url: str) -> None:
    app, stream, _ = declare(app_name, redis_url, partition_size=10, on_full_timeout=0.1)
    await register(app, stream)
    await stream.send(*steps("a", 10))
    before = asyncio.get_running_loop().time()
    with pytest.raises(StreamFull, match='not yet processed by "proc"'):
        await stream.send(Step(key="a", n=10))
    assert 0.1 <= asyncio.get_running_loop().time() - before < 2
    await app.aclose()


async def test_a_full_partition_waits_until_there_is_room(app_name: str, redis_url: str) -> None:
    app, stream, seen = declare(app_name, redis_url, partition_size=10)
    await register(app, stream)
    await stream.send(*steps("a", 10))
    sending = [asyncio.create_task(stream.send(*steps("a", 25, start=10 + 25 * i))) for i in range(4)]
    async with inspecting(app) as redis:
        producer_waits = await redis.link.call("XLEN", stream.keys.log(0))
    assert producer_waits == 10
    async with running(app):
        assert [len(ids) for ids in await asyncio.gather(*sending)] == [25] * 4
        await eventually(lambda: len(seen) == 110)
    assert seen == list(range(110))


async def test_an_attempt_that_arrives_when_the_partition_is_not_full_any_more_does_not_swallow_what_was_sent_meanwhile(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. An append is held up on its way, and repeated: full. 2. One of its sends is given up, and there is another one.
    # 3. There is room, and the first attempt arrives.
    app, stream, seen = declare(app_name, redis_url, partition_size=4)
    await register(app, stream)
    await stream.send(*steps("a", 4))
    append, held_up, room = producer.append, [], asyncio.Event()

    async def late(*arguments: Any, **options: Any) -> Any:
        if room.is_set() and held_up:
            first, held = held_up[0]
            held_up.clear()
            assert (await append(*first, **held))[0].status is not AppendStatus.OK
        answers = await append(*arguments, **options)
        if answers[0].status is AppendStatus.FULL and not held_up:
            held_up.append((arguments, options))
        return answers

    monkeypatch.setattr(producer, "append", late)
    given_up, waits = [asyncio.ensure_future(stream.send(*steps("a", 1, start=n))) for n in (10, 11)]
    await eventually(lambda: held_up)
    given_up.cancel()
    meanwhile = asyncio.ensure_future(stream.send(*steps("a", 1, start=12)))
    async with running(app):
        await eventually(lambda: len(seen) == 4)
        room.set()
        await asyncio.gather(waits, meanwhile)
        await eventually(lambda: seen[-1] == 12)
    assert seen == [0, 1, 2, 3, 11, 12]
    await app.aclose()


async def test_a_full_partition_does_not_hold_up_the_others(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=2, partition_size=5, on_full_timeout=0.3)
    stream = app.stream("steps", record=Step, partition_by="n", hasher=lambda n: n)

    @app.processor(stream)
    async def proc(events):
        async for _ in events.records():
            pass

    await register(app, stream)
    await stream.send(*(Step(key="a", n=0) for _ in range(5)))
    waiting = asyncio.create_task(stream.send(Step(key="a", n=0)))
    await stream.send(*(Step(key="a", n=1) for _ in range(5)))
    assert not waiting.done()
    with pytest.raises(StreamFull, match="Partition 0 "):
        await waiting
    await app.aclose()


class Odd(Serializer):
    """Returns what cannot be sent, now and then."""

    name = "odd"

    def dumps(self, value: Any) -> Any:
        return bytearray(b"7") if value["n"] == 7 else str(value["n"]).encode()

    def loads(self, data: bytes) -> Any:
        return {"key": "a", "n": int(data)}


async def test_what_cannot_be_sent_is_refused_and_holds_up_nobody(app_name: str, redis_url: str) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    stream = app.stream("steps", record=Step, partition_by="key", serializer=Odd())
    await stream.send(Step(key="a", n=0))
    async with asyncio.timeout(5):
        with pytest.raises(RecordError):
            await stream.send(Step(key="a", n=7))
        await stream.send(Step(key="a", n=1))
    assert await numbers(app, stream) == [0, 1]
    await app.aclose()


async def test_who_sends_while_a_partition_is_full_is_not_cancelled(app_name: str, redis_url: str) -> None:
    """1. An append waits for room, over the first connection. 2. Somebody else sends many at once, to the same
    partition: the second connection is free, and has nothing to do before the time for the next attempt has come. 3. It
    waits for that, from within the call: by `asyncio.timeout`, it was the caller who was cancelled then."""
    app = App(name=app_name, redis_url=redis_url, partition_count=2, partition_size=600, on_full_timeout=1.0)
    stream = app.stream("steps", record=Mixed, partition_by="key", hasher=lambda key: key)

    @app.processor(stream)
    async def proc(events):
        async for _ in events.records():
            pass

    async with inspecting(app) as redis, running(app):
        await eventually(lambda: redis.link.call("SISMEMBER", stream.keys.registered(0), "proc"))
    for _ in range(2):  # over both connections
        await stream.send(*(Mixed(key=n % 2, n=n) for n in range(600)))
    producer = stream._producer
    assert producer is not None

    async def send() -> list[str]:
        return await stream.send(*(Mixed(key=0, n=n) for n in range(600)))

    first = asyncio.create_task(send())
    await eventually(lambda: producer._lanes[0].retry_at > time.monotonic() + 0.05)
    second = asyncio.create_task(send())
    outcomes = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StreamFull] * 2
    async with asyncio.timeout(5):
        await app.aclose()


async def test_trim_drops_the_oldest_and_the_loss_is_announced(app_name: str, redis_url: str) -> None:
    app, stream, seen = declare(app_name, redis_url, partition_size=100, on_full="trim")
    announced = Recorder(app)
    await stream.send(*steps("a", 5))
    async with running(app):
        await eventually(lambda: len(seen) == 5)
    assert announced.of(LossDetected) == []
    await stream.send(*steps("a", 1000, start=5))
    kept = await numbers(app, stream)
    assert kept == list(range(1005 - len(kept), 1005))
    async with running(app):
        await eventually(lambda: seen[-1] == 1004)
    assert seen == [*range(5), *kept]
    assert announced.of(LossDetected) == [LossDetected("proc", 0, 1000 - len(kept))]


@pytest.mark.parametrize("seed", range(5))
async def test_concurrent_sends_keep_the_order_of_their_calls_and_get_their_own_ids(
    app_name: str, redis_url: str, seed: int
) -> None:
    """Any mixture of single and many, over partitions, with some given up by their callers in between."""
    chance = random.Random(seed)
    app = App(name=app_name, redis_url=redis_url, partition_count=3)
    stream = app.stream("mixed", record=Mixed, partition_by="key", hasher=lambda key: key)
    numbers = itertools.count()
    async with app:
        sent: list[tuple[list[Mixed], asyncio.Task[list[str]]]] = []
        for _ in range(120):
            records = [
                Mixed(key=chance.randrange(3), n=next(numbers)) for _ in range(chance.choice((1, 1, 1, 2, 40, 900)))
            ]
            sent.append((records, asyncio.create_task(stream.send(*records))))
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice((0, 0.001)))
            if chance.random() < 0.2:
                chance.choice(sent)[1].cancel()
        await asyncio.gather(*(task for _, task in sent), return_exceptions=True)
    async with inspecting(app) as inspector:
        log = {p: await inspector.entries(stream, p) for p in range(3)}
    stored = {p: [Mixed.model_validate_json(fields[b"data"]).n for _, fields in found] for p, found in log.items()}
    number_of = {
        (p, entry_id): Mixed.model_validate_json(fields[b"data"]).n
        for p, found in log.items()
        for entry_id, fields in found
    }
    for found in stored.values():
        assert found == sorted(set(found))  # in the order of the calls, each once
    for records, task in sent:
        if task.cancelled():
            continue
        assert [number_of[record.key, entry_id] for record, entry_id in zip(records, task.result(), strict=True)] == [
            record.n for record in records
        ]
