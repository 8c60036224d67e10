"""Looking at a running system and mending it, while workers run."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, ClassVar

import pytest

from harness import Inspector, Recorder, eventually, inspecting, running
from runnel import App, ExceptionPolicy, Record
from runnel._core.points import moment, point
from runnel._core.slow import SlowEvents
from runnel.admin import (
    Shift,
    apply_reset,
    begin_migration,
    delete_processor,
    examine,
    list_dead_letters,
    list_quarantines,
    pause_processor,
    plan_deletion,
    plan_migration,
    plan_purge,
    plan_replay,
    plan_reset,
    purge_dead_letters,
    replay_dead_letters,
    resume_processor,
    retry_quarantine,
    skip_quarantine,
    status_of,
)
from runnel.admin import quarantine as quarantine_module
from runnel.errors import MigrationConflict, NoSuchPlace, NotQuarantined, ProcessorInUse, RunnelError, UnknownProcessor
from runnel.instruments import GenerationBegun, LogReplaced, PartitionsPaused, PartitionsResumed

pytestmark = [pytest.mark.anyio, pytest.mark.everywhere]

PARTITIONS = 4


class Step(Record):
    key: int
    n: int


class Shop:
    """An app whose processor notes what it handles, and fails where it is told to."""

    made: ClassVar[list["Shop"]] = []

    def __init__(self, app_name: str, redis_url: str, **options: Any) -> None:
        self.app = App(
            name=app_name, redis_url=redis_url, partition_count=PARTITIONS, heartbeat_interval=0.05, session_timeout=2
        )
        self.steps = self.app.stream("steps", record=Step, partition_by="key", hasher=lambda key: key)
        self.made.append(self)
        self.bad: set[tuple[int, int]] = set()
        self.seen: list[tuple[int, int]] = []
        self.began: list[tuple[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.announced = Recorder(self.app)
        options.setdefault("exception_policy", ExceptionPolicy.QUARANTINE)

        @self.app.processor(self.steps, **options)
        async def proc(events):
            async for step in events.records():
                self.began.append((step.key, step.n))
                await self.gate.wait()
                if (step.key, step.n) in self.bad:
                    raise ValueError(f"bad {step.n}")
                self.seen.append((step.key, step.n))

    def of(self, key: int) -> list[int]:
        return [n for its_key, n in self.seen if its_key == key]

    async def send(self, number: int, start: int = 0) -> list[str]:
        return await self.steps.send(
            *(Step(key=k, n=n) for n in range(start, start + number) for k in range(PARTITIONS))
        )

    async def lag(self) -> int:
        (processor,) = (await status_of(self.app)).processors
        return processor.lag

    async def idle(self) -> bool:
        return await self.lag() == 0


@pytest.fixture(autouse=True)
async def _close() -> AsyncIterator[None]:
    """What tests send after the last worker has ended."""
    yield
    while Shop.made:
        await Shop.made.pop().app.aclose()


async def feed(shop: Shop, rounds: int) -> None:
    """Events on and on, so that everything here happens under load."""
    for n in range(rounds):
        await shop.send(1, start=n)
        await asyncio.sleep(0.002)


# Pausing


async def test_a_pause_under_load_stops_everything_and_loses_and_repeats_nothing(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    async with running(shop.app):
        feeding = asyncio.create_task(feed(shop, 300))
        for _ in range(3):
            await eventually(lambda: shop.seen)
            assert await pause_processor(shop.app, "proc")
            assert not await pause_processor(shop.app, "proc"), "it was paused already"

            async def quiet() -> bool:
                before = len(shop.seen)
                await asyncio.sleep(0.05)
                return len(shop.seen) == before and len(shop.announced.of(PartitionsPaused)) > 0

            await eventually(quiet)
            stopped = list(shop.seen)
            (found,) = (await status_of(shop.app)).processors
            assert found.paused is not None
            assert {partition.state for partition in found.partitions} == {"paused"}
            assert sum(partition.processed for partition in found.partitions) == len(stopped), "all of it is committed"
            assert await resume_processor(shop.app, "proc")
            shop.announced.seen.clear()
            before = len(stopped)
            await eventually(lambda before=before: len(shop.seen) > before or feeding.done())
        assert not await resume_processor(shop.app, "proc")
        await feeding
        await eventually(lambda: len(shop.seen) >= 300 * PARTITIONS)
        await eventually(shop.idle)
    for key in range(PARTITIONS):
        assert shop.of(key) == list(range(300))


async def test_a_pause_outlives_its_workers_and_lets_the_event_in_progress_finish(
    app_name: str, redis_url: str
) -> None:
    shop = Shop(app_name, redis_url)
    await shop.send(2)
    async with inspecting(shop.app) as redis:
        async with running(shop.app):
            shop.gate.clear()
            await eventually(lambda: len(shop.began) == PARTITIONS)
            await pause_processor(shop.app, "proc")
            await eventually(lambda: shop.announced.of(PartitionsPaused))
            shop.gate.set()
            await eventually(lambda: len(shop.seen) == PARTITIONS)

            async def committed() -> bool:
                return await redis.count(shop.steps, "proc") == PARTITIONS

            await eventually(committed)
        shop.announced.seen.clear()
        async with running(shop.app):

            async def owned() -> bool:
                (found,) = (await status_of(shop.app)).processors
                return {partition.state for partition in found.partitions} == {"paused"}

            await eventually(owned)
            await eventually(lambda: shop.announced.of(PartitionsPaused) == [PartitionsPaused("proc", (0, 1, 2, 3))])
            assert len(shop.began) == PARTITIONS, "nothing is begun by a worker that starts meanwhile"
            await resume_processor(shop.app, "proc")
            await eventually(lambda: len(shop.seen) == 2 * PARTITIONS)
    assert all(shop.of(key) == [0, 1] for key in range(PARTITIONS))


async def test_resumed_before_the_event_in_progress_has_ended_nothing_is_repeated(
    app_name: str, redis_url: str
) -> None:
    shop = Shop(app_name, redis_url)
    await shop.send(3)
    async with running(shop.app):
        shop.gate.clear()
        await eventually(lambda: len(shop.began) == PARTITIONS)
        await pause_processor(shop.app, "proc")
        await eventually(lambda: shop.announced.of(PartitionsPaused))
        await resume_processor(shop.app, "proc")
        await eventually(lambda: shop.announced.of(PartitionsResumed))
        shop.gate.set()
        await eventually(lambda: len(shop.seen) == 3 * PARTITIONS)
    assert all(shop.of(key) == [0, 1, 2] for key in range(PARTITIONS))


async def test_a_failure_while_pausing_is_quarantined_and_stays_so_when_resumed(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    await shop.send(2)
    shop.bad.add((1, 0))
    async with running(shop.app):
        shop.gate.clear()
        await eventually(lambda: len(shop.began) == PARTITIONS)
        await pause_processor(shop.app, "proc")
        await eventually(lambda: shop.announced.of(PartitionsPaused))
        shop.gate.set()
        (one,) = await eventually(lambda: list_quarantines(shop.app))
        assert one.partition == 1
        await resume_processor(shop.app, "proc")
        await eventually(lambda: len(shop.seen) == 2 * (PARTITIONS - 1))
        assert [one.partition for one in await list_quarantines(shop.app)] == [1]
        shop.bad.clear()
        await retry_quarantine(shop.app, "proc")
        await eventually(lambda: shop.of(1) == [0, 1])


# Moving positions


async def test_a_reset_under_load_is_taken_over_without_a_stale_buffer(app_name: str, redis_url: str) -> None:
    """Back to the beginning, while events come: each partition begins again at 0, and then misses and swaps nothing."""
    shop = Shop(app_name, redis_url)
    async with running(shop.app):
        feeding = asyncio.create_task(feed(shop, 200))
        await eventually(lambda: all(len(shop.of(key)) > 20 for key in range(PARTITIONS)))
        await apply_reset(shop.app, "proc", await plan_reset(shop.app, "proc", "earliest"))
        await feeding
        await eventually(
            lambda: all(shop.of(key)[-1] == 199 and shop.of(key).count(0) == 2 for key in range(PARTITIONS))
        )
        await eventually(shop.idle)
    for key in range(PARTITIONS):
        seen = shop.of(key)
        again = seen.index(0, 1)
        assert seen[:again] == list(range(again)), "in order until it was moved"
        assert seen[again:] == list(range(200)), "and everything from there, in order"


async def test_positions_are_moved_by_time_by_duration_and_by_number(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    ids = [await shop.steps.send(Step(key=0, n=n)) for n in range(5)]
    at = [one[0] for one in ids]

    async def planned(start: str | Shift) -> int:
        (item,) = await plan_reset(shop.app, "proc", start, [0])
        return item.new_lag

    assert await planned("earliest") == 5
    assert await planned("latest") == 0
    assert await planned(at[3]) == 2
    assert await planned("-1h") == 5
    assert await planned("2001-01-01") == 5
    assert await planned("2999-01-01T00:00+01:00") == 0
    assert await planned(Shift(2)) == 3
    assert await planned(Shift(99)) == 0
    await apply_reset(shop.app, "proc", await plan_reset(shop.app, "proc", Shift(4), [0]))
    assert await planned(Shift(0)) == 1
    assert await planned(Shift(-1)) == 2
    assert await planned(Shift(-4)) == 5
    assert await planned(Shift(-99)) == 5
    with pytest.raises(NoSuchPlace, match='"soon" is neither an entry id nor a time'):
        await planned("soon")
    with pytest.raises(NoSuchPlace, match="but not 9"):
        await plan_reset(shop.app, "proc", "0", [9])


async def test_a_reset_that_was_planned_in_another_generation_is_refused_and_changes_nothing(
    app_name: str, redis_url: str
) -> None:
    shop = Shop(app_name, redis_url)
    await shop.send(2)
    async with running(shop.app):
        await eventually(shop.idle)
        planned = await plan_reset(shop.app, "proc", "earliest")
        assert {item.generation for item in planned} == {0}
        await begin_migration(
            shop.app, shop.steps, await plan_migration(shop.app, shop.steps, partition_count=2 * PARTITIONS)
        )
        await eventually(lambda: shop.announced.of(GenerationBegun))
    async with inspecting(shop.app) as redis:
        for partition in range(PARTITIONS):
            await eventually(lambda partition=partition: redis.position(shop.steps, "proc", partition))
        before = [await redis.position(shop.steps, "proc", partition) for partition in range(2 * PARTITIONS)]
        with pytest.raises(MigrationConflict, match="has gone on to its generation 1 since this was planned"):
            await apply_reset(shop.app, "proc", planned)
        assert [await redis.position(shop.steps, "proc", partition) for partition in range(2 * PARTITIONS)] == before


async def test_places_in_a_stream_are_read_as_people_write_them() -> None:
    now = 1_700_000_000.0
    assert point("latest", now) is None
    assert point("$", now) is None
    assert point("earliest", now) == b"0-0"
    assert point("0", now) == b"0-0"
    assert point("1700000000000-7", now) == b"1700000000000-7"
    assert point("-1h30m", now) == b"1699994600000-0"
    assert point("-2d", now) == b"1699827200000-0"
    assert point("2023-11-14T22:13:20", now) == b"1700000000000-0"
    assert point("2023-11-14T23:13:20+01:00", now) == b"1700000000000-0"
    for words in ("-", "-5", "-5x", "tomorrow", "", "1-2-3"):
        with pytest.raises(NoSuchPlace):
            point(words, now)


async def test_a_date_without_dashes_is_no_id_where_a_time_is_meant() -> None:
    assert moment("20231114") == moment("2023-11-14") == b"1699920000000-0"
    assert moment("2023-11-14T23:13:20+01:00") == b"1700000000000-0"
    for words in ("0", "latest", "-5m", "yesterday", "1700000000000-0"):
        with pytest.raises(NoSuchPlace, match="is not a time"):
            moment(words)


# Lag


async def test_the_lag_is_right_after_trimming_deletion_and_moved_positions(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    ids = await shop.steps.send(*(Step(key=0, n=n) for n in range(10)))
    assert await shop.lag() == 10
    async with running(shop.app):
        await eventually(shop.idle)
    async with inspecting(shop.app) as redis:
        log = shop.steps.keys.log(0)
        await apply_reset(shop.app, "proc", await plan_reset(shop.app, "proc", ids[4]))
        assert await shop.lag() == 6
        await redis.link.call("XDEL", log, ids[6], ids[1])
        assert await shop.lag() == 5
        await redis.link.call("XTRIM", log, "MINID", ids[8])
        assert await shop.lag() == 2
        await redis.link.call("XTRIM", log, "MAXLEN", 0)
        assert await shop.lag() == 0
        await shop.steps.send(Step(key=0, n=10))
        (found,) = (await status_of(shop.app)).processors
        assert found.lag == 1
        assert 0 <= found.oldest < 5


async def test_entries_that_were_removed_unprocessed_are_counted(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    await shop.steps.send(*(Step(key=0, n=n) for n in range(2)))
    async with running(shop.app):
        await eventually(shop.idle)
    ids = await shop.steps.send(*(Step(key=0, n=n) for n in range(2, 6)))
    async with inspecting(shop.app) as redis:
        await redis.link.call("XTRIM", shop.steps.keys.log(0), "MINID", ids[3])
    async with running(shop.app):
        await eventually(shop.idle)
        (found,) = (await status_of(shop.app)).processors
        assert found.lost == 3
    assert shop.of(0) == [0, 1, 5]
    assert any("has lost 3 events of partition 0" in finding.what for finding in await examine(shop.app))


async def test_a_slow_event_is_shown_with_its_time_and_a_quick_one_is_not(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    (slow,) = await shop.steps.send(Step(key=2, n=0))
    async with running(shop.app):
        shop.gate.clear()

        async def shown() -> Any:
            (found,) = (await status_of(shop.app)).processors
            return found.partitions[2].in_progress

        found = await eventually(shown)
        assert found.event == slow
        assert found.seconds >= 1.0
        shop.gate.set()

        async def gone() -> bool:
            return await shown() is None

        await eventually(gone)


async def test_only_what_is_seen_at_two_looks_is_slow() -> None:
    slow = SlowEvents()
    assert slow.look(0.0, [(1, 7, "a"), (2, 7, "b")]) == []
    assert slow.look(1.0, [(1, 7, "a"), (2, 7, "c")]) == [(1, 7, "a", 1.0)]
    assert slow.look(2.0, [(1, 7, "a")]) == [], "it was said"
    assert slow.look(3.0, [(1, 7, "d")]) == [(1, 7, "", 0.0)]
    assert slow.look(4.0, [(1, 7, "d")]) == [(1, 7, "d", 1.0)]


async def test_the_status_says_who_owns_what_and_how_fast_it_goes(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    (before,) = (await status_of(shop.app)).processors
    assert (before.partitions, before.members, before.lag) == ((), (), 0)
    async with running(shop.app) as worker:
        await shop.send(1)
        await eventually(shop.idle)
        feeding = asyncio.create_task(feed(shop, 100))
        found = await status_of(shop.app, over=0.2)
        await feeding
    assert found.workers == (worker.name,)
    (processor,) = found.processors
    (member,) = processor.members
    assert (member.name, member.state, member.partitions) == (worker.name, "alive", (0, 1, 2, 3))
    assert {(p.owner, p.state) for p in processor.partitions} == {(worker.name, "running")}
    assert all(p.owned is not None and 0 <= p.owned < 30 for p in processor.partitions)
    assert processor.rate is not None
    assert processor.rate.sent > 0
    assert processor.rate.processed > 0


# Quarantine


async def test_retrying_a_quarantine_under_load_keeps_order_and_loses_nothing(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    shop.bad.add((1, 5))
    async with running(shop.app):
        feeding = asyncio.create_task(feed(shop, 100))
        (one,) = await eventually(lambda: list_quarantines(shop.app))
        assert (one.partition, one.error) == (1, "ValueError: bad 5")
        assert "raise ValueError" in one.traceback
        assert "_worker" not in one.traceback, "frames of the user's only"
        for attempt in range(2, 4):
            await retry_quarantine(shop.app, "proc", [1])
            await eventually(lambda attempt=attempt: shop.began.count((1, 5)) == attempt)
            await eventually(lambda: list_quarantines(shop.app))
        shop.bad.clear()
        await retry_quarantine(shop.app, "proc")
        await feeding
        await eventually(shop.idle)
        with pytest.raises(NotQuarantined, match="not quarantined in partition 1"):
            await retry_quarantine(shop.app, "proc", [1])
    assert all(shop.of(key) == list(range(100)) for key in range(PARTITIONS))


async def test_skipping_under_load_makes_one_dead_letter_and_goes_on_behind_it(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    shop.bad |= {(1, 5), (1, 7)}
    async with running(shop.app):
        feeding = asyncio.create_task(feed(shop, 100))
        (one,) = await eventually(lambda: list_quarantines(shop.app))
        (skipped,) = await skip_quarantine(shop.app, "proc", [1])
        assert (skipped.sink, skipped.events, skipped.missing) == ("steps.dead", one.events, ())

        async def failed_again() -> bool:
            return [q.error for q in await list_quarantines(shop.app)] == ["ValueError: bad 7"]

        await eventually(failed_again)
        await skip_quarantine(shop.app, "proc", [1])
        await feeding
        await eventually(shop.idle)
        assert shop.of(1) == [n for n in range(100) if n not in (5, 7)]
        assert all(shop.of(key) == list(range(100)) for key in (0, 2, 3))
        letters = await list_dead_letters(shop.app, shop.steps)
        assert [(letter.event.record.n, letter.processor, letter.error) for letter in letters] == [
            (5, "proc", "ValueError: bad 5"),
            (7, "proc", "ValueError: bad 7"),
        ]
        assert letters[0].source == f"steps/1/{one.events[0]}"


async def test_skipping_in_a_log_that_was_deleted_meanwhile_does_not_hide_that(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    shop.bad.add((0, 0))
    await shop.send(3)
    async with inspecting(shop.app) as redis, running(shop.app):
        await eventually(lambda: list_quarantines(shop.app))
        log = shop.steps.keys.log(0)
        await redis.link.call("DEL", log)
        shop.bad.clear()
        await shop.steps.send(Step(key=0, n=3))
        (skipped,) = await skip_quarantine(shop.app, "proc", [0])
        assert len(skipped.missing) == 1
        await eventually(lambda: shop.of(0) == [3])
    assert [one.partition for one in shop.announced.of(LogReplaced)] == [0]


@pytest.mark.parametrize("step", ["_move_behind", "_lift"])
async def test_a_skip_that_is_interrupted_is_done_by_the_next_one(
    app_name: str, redis_url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(app_name, redis_url)
    shop.bad.add((0, 0))
    await shop.send(2)
    async with running(shop.app):
        await eventually(lambda: list_quarantines(shop.app))

        async def killed(*_: Any) -> None:
            raise KeyError("killed")

        with monkeypatch.context() as patch:
            patch.setattr(quarantine_module, step, killed)
            with pytest.raises(KeyError):
                await skip_quarantine(shop.app, "proc", [0])
        assert [one.partition for one in await list_quarantines(shop.app)] == [0]
        await skip_quarantine(shop.app, "proc", [0])
        await eventually(shop.idle)
    assert shop.of(0) == [1]
    assert len(await list_dead_letters(shop.app, shop.steps)) == 1


async def test_a_skip_that_comes_too_late_makes_no_dead_letter_of_what_is_processed(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(app_name, redis_url)
    shop.bad.add((0, 0))
    await shop.send(2)
    async with running(shop.app):
        await eventually(lambda: list_quarantines(shop.app))
        read = quarantine_module._events

        async def overtaken(*arguments: Any) -> Any:
            events = await read(*arguments)
            shop.bad.clear()
            await retry_quarantine(shop.app, "proc", [0])
            await eventually(lambda: shop.of(0) == [0, 1])
            return events

        monkeypatch.setattr(quarantine_module, "_events", overtaken)
        with pytest.raises(NotQuarantined, match='"proc" in partition 0 has ended meanwhile'):
            await skip_quarantine(shop.app, "proc", [0])
    assert await list_dead_letters(shop.app, shop.steps) == []


async def test_who_ends_a_quarantine_that_has_ended_is_told(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(app_name, redis_url)
    shop.bad.add((0, 0))
    await shop.send(2)
    async with running(shop.app):
        await eventually(lambda: list_quarantines(shop.app))
        lift = quarantine_module._lift

        async def overtaken(*arguments: Any) -> bool:
            shop.bad = {(0, 1)}
            assert await lift(*arguments)
            await eventually(lambda: list_quarantines(shop.app))
            return await lift(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(quarantine_module, "_lift", overtaken)
            with pytest.raises(NotQuarantined, match='"proc" in partition 0 has ended meanwhile'):
                await retry_quarantine(shop.app, "proc", [0])
        move = quarantine_module._move_behind

        async def retried(*arguments: Any) -> None:
            await move(*arguments)
            await retry_quarantine(shop.app, "proc", [0])

        monkeypatch.setattr(quarantine_module, "_move_behind", retried)
        (skipped,) = await skip_quarantine(shop.app, "proc", [0])
        assert not skipped.lifted
        await eventually(shop.idle)
    assert shop.of(0) == [0]


# Dead letters


async def test_what_is_skipped_of_dead_letters_goes_to_dead_letters_of_their_own(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url, exception_policy=ExceptionPolicy.IGNORE)
    sink = shop.app.stream("steps.dead", record=Step, partition_by="key", hasher=lambda key: key)
    buried: list[int] = []

    @shop.app.processor(sink, exception_policy=ExceptionPolicy.QUARANTINE)
    async def undertaker(events):
        async for step in events.records():
            if step.n == 0:
                raise ValueError("not dead enough")
            buried.append(step.n)

    await sink.send(Step(key=0, n=0), Step(key=0, n=1))
    async with running(shop.app, ["undertaker"]):
        await eventually(lambda: list_quarantines(shop.app))
        (skipped,) = await skip_quarantine(shop.app, "undertaker", [0])
        assert skipped.sink == "steps.dead.dead"
        await eventually(lambda: buried == [1])
        (undertaken,) = [one for one in (await status_of(shop.app)).processors if one.name == "undertaker"]
        assert undertaken.partitions[0].processed + undertaken.lag == 2, "nothing came back"


async def dead(shop: Shop) -> None:
    """Two dead letters, of the keys 0 and 1."""
    shop.bad |= {(0, 0), (1, 0)}
    await shop.send(2)

    async def both() -> bool:
        return len(await list_quarantines(shop.app)) == 2

    await eventually(both)
    await skip_quarantine(shop.app, "proc", [0, 1])
    await eventually(shop.idle)


async def test_a_replayed_letter_goes_back_once_though_the_command_is_interrupted(
    app_name: str, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(app_name, redis_url)
    async with running(shop.app):
        await dead(shop)
        shop.bad.clear()
        plans = await plan_replay(shop.app, shop.steps)
        assert [(plan.to, plan.obstacle) for plan in plans] == [("steps", ""), ("steps", "")]

        async def killed(*_: Any) -> None:
            raise KeyError("killed")

        with monkeypatch.context() as patch:
            patch.setattr("runnel.admin.dead_letters._remove", killed)
            for _ in range(3):
                with pytest.raises(KeyError):
                    await replay_dead_letters(shop.app, await plan_replay(shop.app, shop.steps))
        assert len(await list_dead_letters(shop.app, shop.steps)) == 2
        assert await replay_dead_letters(shop.app, await plan_replay(shop.app, shop.steps)) == 2
        assert await list_dead_letters(shop.app, shop.steps) == []
        await eventually(shop.idle)
        await eventually(lambda: len(shop.seen) == 2 * PARTITIONS)
    assert shop.of(0) == [1, 0], "behind what came later of its key"
    assert shop.of(1) == [1, 0]


async def test_letters_are_chosen_by_name_and_purged_for_good(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    async with running(shop.app):
        await dead(shop)
    letters = await list_dead_letters(shop.app, shop.steps)
    assert await purge_dead_letters(shop.app, await plan_purge(shop.app, shop.steps, [letters[0].name])) == 1
    assert [letter.name for letter in await list_dead_letters(shop.app, shop.steps)] == [letters[1].name]
    with pytest.raises(RunnelError, match="There is no dead letter"):
        await plan_purge(shop.app, shop.steps, [letters[0].name])


async def test_a_letter_that_a_processor_has_yet_to_see_stays(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    async with running(shop.app):
        await dead(shop)
    sink = shop.app.streams["steps.dead"]
    told: list[int] = []

    @shop.app.processor(sink)
    async def undertaker(events):
        async for step in events.records():
            told.append(step.key)

    async with running(shop.app, ["undertaker"]):
        await eventually(lambda: len(told) == 2)
    await apply_reset(shop.app, "undertaker", await plan_reset(shop.app, "undertaker", "0", [0]))
    plans = await plan_replay(shop.app, shop.steps)
    assert sorted(plan.obstacle for plan in plans) == ["", '"undertaker" has not processed it yet']
    assert await replay_dead_letters(shop.app, plans) == 1


# Deleting a processor


async def test_a_processor_is_deleted_only_when_nobody_runs_it(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    with pytest.raises(UnknownProcessor, match="no worker has ever run it"):
        await plan_deletion(shop.app, "proc")
    await shop.send(2)
    async with running(shop.app) as worker:
        await eventually(shop.idle)
        found = await plan_deletion(shop.app, "proc")
        assert found.workers == (worker.name,)
        with pytest.raises(ProcessorInUse, match=worker.name):
            await delete_processor(shop.app, found)
        await shop.send(1, start=2)
        await eventually(lambda: len(shop.seen) == 3 * PARTITIONS)
    async with inspecting(shop.app) as redis:
        await delete_processor(shop.app, await plan_deletion(shop.app, "proc"))
        await nothing_is_left(redis, shop)
    shop.seen.clear()
    async with running(shop.app):
        await eventually(lambda: len(shop.seen) == 3 * PARTITIONS)


async def test_of_a_processor_that_was_moved_to_another_stream_what_is_left_behind_is_deleted(
    app_name: str, redis_url: str
) -> None:
    former = Shop(app_name, redis_url)
    await former.send(1)
    async with running(former.app):
        await eventually(former.idle)
    app = App(name=app_name, redis_url=redis_url, partition_count=PARTITIONS, heartbeat_interval=0.05)
    former.steps = app.stream("steps", record=Step, partition_by="key", hasher=former.steps.options.hasher)
    moved = app.stream("moved", record=Step, partition_by="key")
    seen: list[int] = []

    @app.processor(moved)
    async def proc(events):
        async for step in events.records():
            seen.append(step.n)

    async with app, running(app) as worker:
        await moved.send(Step(key=0, n=0))
        await eventually(lambda: seen == [0])
        found = await plan_deletion(app, "proc")
        assert (found.stream, found.declared, found.workers) == ("steps", False, ())
        await delete_processor(app, found)
        async with inspecting(app) as redis:
            await nothing_is_left(redis, former)
        found = await plan_deletion(app, "proc")
        assert (found.stream, found.declared, found.workers) == ("moved", True, (worker.name,))


@pytest.mark.parametrize("step", ["forget_processor", "scripts.forget_positions"])
async def test_a_deletion_that_is_interrupted_is_done_by_the_next_one(
    app_name: str, redis_url: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Shop(app_name, redis_url)
    await shop.send(1)
    async with running(shop.app):
        await begin_migration(shop.app, shop.steps, await plan_migration(shop.app, shop.steps, partition_count=2))
        await eventually(lambda: shop.announced.of(GenerationBegun))
        await eventually(shop.idle)

    async def killed(*_: Any) -> None:
        raise KeyError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(f"runnel.admin.deletion.{step}", killed)
        with pytest.raises(KeyError):
            await delete_processor(shop.app, await plan_deletion(shop.app, "proc"))
    await delete_processor(shop.app, await plan_deletion(shop.app, "proc"))
    async with inspecting(shop.app) as redis:
        await nothing_is_left(redis, shop)
        metadata = shop.steps.keys.metadata
        assert await redis.link.at(metadata).call("HGET", metadata, "at:proc") is None


async def nothing_is_left(redis: Inspector, shop: Shop) -> None:
    name = shop.app.name
    keys = await redis.link.call("KEYS", f"runnel:{{{name}/steps/proc}}*")
    assert keys == []
    assert await redis.position(shop.steps, "proc", 0) is None
    assert await redis.link.call("SMEMBERS", shop.steps.keys.registered(0)) == []
    assert await redis.link.call("XINFO", "GROUPS", shop.steps.keys.log(0)) == []


# Looking at events


# Doctor


async def test_the_doctor_finds_what_the_app_does_not_have_and_who_is_missing(app_name: str, redis_url: str) -> None:
    shop = Shop(app_name, redis_url)
    await shop.send(1)
    async with running(shop.app):
        await eventually(shop.idle)
    other = App(name=app_name, redis_url=redis_url, partition_count=PARTITIONS)
    other.stream("steps", record=Step, partition_by="key", hasher=shop.steps.options.hasher)
    found = [finding for finding in await examine(other) if '"proc" is registered on "steps"' in finding.what]
    assert found
    assert found[0].urgent
    assert "runnel processor delete" in found[0].cure
    await shop.send(1)
    whats = [finding.what for finding in await examine(shop.app)]
    assert f'No worker runs "proc", with {PARTITIONS} events waiting.' in whats
    mismatched = App(name=app_name, redis_url=redis_url, partition_count=8)
    mismatched.stream("steps", record=Step, partition_by="key", hasher=shop.steps.options.hasher)
    assert any("has 4 partitions in Redis, but this process says 8" in f.what for f in await examine(mismatched))
