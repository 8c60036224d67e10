"""How much a worker reads ahead: more for who is fast, within a budget of bytes, and nobody starves."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import eventually, running
from runnel import App, Record
from runnel._core.read_ahead import MOST, OVERHEAD, ReadAhead
from runnel.feed import Feed


class Blob(Record):
    key: int
    n: int
    data: str = ""


# The decision


@given(
    prefetch=st.integers(1, 500),
    budget=st.integers(1, 100_000_000),
    partitions=st.integers(1, 300),
    size=st.integers(1, 30_000_000),
    starved=st.integers(0, 20),
)
def test_what_is_buffered_fits_the_budget_or_is_what_processors_wait_for(
    prefetch: int, budget: int, partitions: int, size: int, starved: int
) -> None:
    ahead = ReadAhead(prefetch, budget)
    ahead.took(3, 3 * size)
    for _ in range(starved):
        ahead.starved()
    step = ahead.step(partitions)
    assert 1 <= step.count <= max(prefetch, MOST)
    entry = size + OVERHEAD
    if step.room >= 0:
        assert partitions * (step.room + step.count) * entry <= budget
    else:
        assert step.count == 1  # nothing waits: each is read when it is asked for
    assert step.partitions * step.count * entry <= max(budget, entry)


def test_the_first_read_is_of_one_entry_of_one_partition() -> None:
    step = ReadAhead(100, 1_000_000).step(16)
    assert (step.count, step.partitions) == (1, 1)


def test_it_begins_with_prefetch_count_and_grows_only_for_who_has_to_wait() -> None:
    ahead = ReadAhead(8, 16_000_000)
    ahead.took(1, 100)
    assert ahead.step(16).count == 8
    for expected in (16, 32, 64, 128, 128):
        ahead.starved()
        assert ahead.step(16).count == expected
    more = ReadAhead(1000, 16_000_000)
    more.took(1, 100)
    more.starved()
    assert more.step(1).count == 1000


@given(prefetch=st.integers(1, 500), batch=st.integers(1, 2_000))
def test_reads_leave_nothing_over_of_lists(prefetch: int, batch: int) -> None:
    ahead = ReadAhead(prefetch, 100_000_000)
    ahead.took(1, 100)
    count = ahead.step(1, 0, batch).count
    if batch <= prefetch:
        assert count % batch == 0
        assert prefetch - batch < count <= prefetch
    else:
        reads = -(-batch // prefetch)  # as few as with the largest reads
        assert count <= prefetch
        assert batch <= reads * count < batch + reads


def test_the_estimate_rises_at_once_and_falls_slowly() -> None:
    ahead = ReadAhead(100, 1_000_000)
    ahead.took(1, 100)
    assert ahead.step(1).count == 100
    ahead.took(1, 100_000)
    assert ahead.step(1).count == 4
    ahead.took(100, 10_000)
    assert 4 < ahead.step(1).count < 100


# In a worker


def app_of(app_name: str, redis_url: str, partitions: int, **settings: Any) -> App:
    return App(name=app_name, redis_url=redis_url, partition_count=partitions, **settings)


@pytest.mark.anyio
async def test_large_events_wait_in_the_log_and_not_in_the_worker(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 partitions with 100 kB each time, and room for 3: a slow processor keeps nobody from going on."""
    app = app_of(app_name, redis_url, 20, prefetch_bytes=300_000, prefetch_count=50)
    blobs = app.stream("blobs", record=Blob, partition_by="key", hasher=lambda key: key)
    feeds: set[Feed] = set()
    most, largest_read = 0, 0
    add = Feed.add

    def watched(feed: Feed, entries: Any, *, full: bool) -> None:
        nonlocal most, largest_read
        add(feed, entries, full=full)
        feeds.add(feed)
        most = max(most, sum(len(entry[1][1]) for one in feeds for entry in one.entries))

    monkeypatch.setattr(Feed, "add", watched)
    gate = asyncio.Event()
    seen: dict[int, list[int]] = {key: [] for key in range(20)}

    @app.processor(blobs)
    async def proc(events):
        async for blob in events.records():
            seen[blob.key].append(blob.n)
            if blob.key == 7:
                await gate.wait()

    for n in range(10):
        await blobs.send(*(Blob(key=key, n=n, data="x" * 100_000) for key in range(20)))
    async with running(app):
        await eventually(lambda: all(len(found) == 10 for key, found in seen.items() if key != 7))
        assert len(seen[7]) == 1
        gate.set()
        await eventually(lambda: len(seen[7]) == 10)
    assert all(found == list(range(10)) for found in seen.values())
    assert 0 < most <= 300_000


@pytest.mark.anyio
async def test_from_a_backlog_lists_come_whole(app_name: str, redis_url: str) -> None:
    app = app_of(app_name, redis_url, 1, prefetch_count=128)
    blobs = app.stream("blobs", record=Blob, partition_by="key")
    sizes: list[int] = []

    @app.processor(blobs)
    async def proc(events):
        async for batch in events.take(100, within=0).records():
            sizes.append(len(batch))

    await blobs.send(*(Blob(key=1, n=n) for n in range(1001)))
    async with running(app):
        await eventually(lambda: sum(sizes) == 1001)
    assert sizes == [1, *[100] * 10], "the first read is of one event"


@pytest.mark.anyio
async def test_a_processor_that_is_slow_holds_no_more_than_its_prefetch(app_name: str, redis_url: str) -> None:
    app = app_of(app_name, redis_url, 1, prefetch_count=3)
    blobs = app.stream("blobs", record=Blob, partition_by="key")
    in_hand, gate = asyncio.Semaphore(0), asyncio.Event()
    feeds: list[Feed] = []

    @app.processor(blobs)
    async def proc(events):
        feeds.append(events._feed)
        async for _ in events.records():
            in_hand.release()
            await gate.wait()

    await blobs.send(*(Blob(key=1, n=n) for n in range(100)))
    async with running(app):
        await in_hand.acquire()
        await eventually(lambda: len(feeds[0].entries) > 3)
        assert len(feeds[0].entries) <= 6
        gate.set()


@pytest.mark.anyio
@pytest.mark.parametrize("style", ["records", "take"])
async def test_a_busy_partition_does_not_keep_a_quiet_one_waiting(app_name: str, redis_url: str, style: str) -> None:
    """The busy one's function never waits for anything."""
    app = app_of(app_name, redis_url, 2, partition_size=0)
    blobs = app.stream("blobs", record=Blob, partition_by="key", hasher=lambda key: key)
    order: list[int] = []
    begun = asyncio.Event()

    @app.processor(blobs)
    async def proc(events):
        if style == "take":
            async for several in events.take(10, within=0).records():
                order.extend(blob.key for blob in several)
                begun.set()
        else:
            async for blob in events.records():
                order.append(blob.key)
                begun.set()

    await blobs.send(*(Blob(key=0, n=n) for n in range(150_000)))
    async with running(app):
        await begun.wait()
        await blobs.send(Blob(key=1, n=0))
        await eventually(lambda: len(order) == 150_001)
    assert order.index(1) < 120_000
