"""The scripts by which a stream goes over from one generation to the next."""

import pytest

from runnel._core import entry_ids
from runnel._core.generations import Generation, Generations
from runnel._redis import generations, scripts
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.scripts import Appended, AppendStatus, Batch

pytestmark = pytest.mark.anyio

OK, DUP, SEALED = AppendStatus.OK, AppendStatus.DUP, AppendStatus.SEALED


@pytest.fixture
async def keys(link: Link, app_name: str) -> StreamKeys:
    """Of a stream with two partitions."""
    keys = StreamKeys(app_name, "flights")
    properties = {"partition_count": "2", "slot_groups": "1", "hasher": "xxh64", "format": "json"}
    await scripts.declare(link, keys, properties)
    return keys


def batch(
    sequence: int, count: int = 1, *, partition: int = 0, producer: str = "producer", confirmed: int = 0
) -> Batch:
    return Batch(partition, producer, sequence, confirmed, [(b"data", b"%d" % n) for n in range(count)])


async def append(link: Link, keys: StreamKeys, *batches: Batch) -> list[Appended]:
    slot_group = keys.slot_group(batches[0].partition)
    return await scripts.append(link, keys, slot_group, batches, limit=0, trim=False, expiry=60_000)


async def go_over(link: Link, keys: StreamKeys, *following: Generation) -> StreamKeys:
    """Let producers go over to these generations, one after the other. Returns the keys of the last one."""
    for generation in following:
        assert await generations.propose(link, keys, generation)
        found = await generations.see_through(link, keys)
        assert found.current == generation
    return StreamKeys.of(keys.app, keys.stream, following[-1])


async def test_a_sealed_slot_group_takes_nothing_any_more_but_knows_what_it_has(link: Link, keys: StreamKeys) -> None:
    """A retry of what was appended before the seal is answered as one; anything else belongs elsewhere."""
    [before] = await append(link, keys, batch(1, 3))
    assert await generations.propose(link, keys, Generation(1, 3, 1))
    assert [answer.status for answer in await append(link, keys, batch(1, producer="other"))] == [OK]
    await generations.see_through(link, keys)
    assert await append(link, keys, batch(1, 3), batch(1, partition=1)) == [
        Appended(DUP, before.detail),
        Appended(SEALED, b""),
    ]
    assert await append(link, keys, batch(2)) == [Appended(SEALED, b"")]
    assert await append(link, keys, batch(9, confirmed=8)) == [Appended(SEALED, b"")]
    assert [await link.call("XLEN", keys.log(partition)) for partition in range(2)] == [4, 0]


async def test_the_next_generation_begins_above_the_ids_of_the_one_before_and_with_its_processors(
    link: Link, keys: StreamKeys
) -> None:
    await scripts.acquire(link, keys, "delays", 0, 1, "m")
    ahead = b"%d-7" % (1 << 44)
    await link.call("XADD", keys.log(1), ahead, "data", "x")
    new = await go_over(link, keys, Generation(1, 3, 2))
    assert [await link.call("SMEMBERS", new.registered(slot_group)) for slot_group in range(2)] == [[b"delays"]] * 2
    for partition in range(3):
        [answer] = await append(link, new, batch(1, partition=partition))
        assert answer.status is OK
        assert entry_ids.parse(answer.detail) > entry_ids.parse(ahead)


async def test_seeing_a_change_through_again_changes_nothing(link: Link, keys: StreamKeys) -> None:
    new = await go_over(link, keys, Generation(1, 3, 1))
    before = await generations.generations_of(link, keys)
    [answer] = await append(link, new, batch(1, 3))
    assert await generations.see_through(link, keys) == before
    # The same from where it was proposed, by somebody who was held up since then.
    await link.call("HSET", keys.metadata, "generation", 0, "partition_count", 2, "next", "3|1")
    assert await generations.see_through(link, keys) == before
    assert [entry_id for entry_id, _ in await link.call("XRANGE", new.log(0), "-", "+")][-1] == answer.detail
    assert (await append(link, new, batch(2)))[0].status is OK


async def test_a_generation_has_one_successor(link: Link, keys: StreamKeys) -> None:
    assert await generations.propose(link, keys, Generation(1, 3, 1))
    assert await generations.propose(link, keys, Generation(1, 3, 1))
    assert not await generations.propose(link, keys, Generation(1, 4, 1))
    await generations.see_through(link, keys)
    assert not await generations.propose(link, keys, Generation(1, 3, 1))
    assert await generations.propose(link, keys, Generation(2, 2, 1))


async def test_the_generation_of_a_processor_never_goes_back(link: Link, keys: StreamKeys) -> None:
    await go_over(link, keys, Generation(1, 3, 1), Generation(2, 4, 1))
    for number in (2, 1):
        await generations.begin(link, keys, "delays", Generation(number, 2 + number, 1))
    found = await generations.generations_of(link, keys)
    assert found is not None
    assert [found.of_processor(name).number for name in ("delays", "new")] == [2, 0]
    await generations.forget(link, keys, Generation(0, 2, 1))
    found = await generations.generations_of(link, keys)
    assert found is not None
    assert [found.of_processor(name).number for name in ("delays", "new")] == [2, 1]


async def test_generations_have_keys_of_their_own_and_the_first_one_the_plain_names(keys: StreamKeys) -> None:
    later = StreamKeys.of(keys.app, keys.stream, Generation(3, 2, 1))
    assert keys.log(0) == f"runnel:{{{keys.app}/flights#0}}:log:0"
    assert later.log(0) == f"runnel:{{{keys.app}/flights@3#0}}:log:0"
    assert later.control("delays").group == f"runnel:{{{keys.app}/flights/delays@3}}:group"
    assert later.metadata == keys.metadata
    assert StreamKeys(keys.app, "flights@3").log(0) != later.log(0)


def test_the_metadata_of_a_stream_that_was_never_divided_anew_say_nothing_of_generations() -> None:
    found = Generations.of({"partition_count": "4", "slot_groups": "1", "hasher": "xxh64", "format": "json"})
    assert found.existing == (Generation(0, 4, 1),)
    assert found.newest == found.current == found.of_processor("any")
    assert found.after(found.current) is None
    assert not (found.moving)
    assert not (found.moved)
    assert not (found.arriving)


def test_the_metadata_say_which_generations_there_are_and_who_is_where() -> None:
    found = Generations.of(
        {"partition_count": "5", "slot_groups": "2", "generation": "12", "next": "6|3", "oldest": "10"}
        | {f"was:{n}": f"{n}|1" for n in range(1, 12)}
        | {"at:a": "11", "at:b": "3", "moving": "number|redis://host/0"}
    )
    assert [one.number for one in found.earlier] == list(range(1, 12))  # as numbers, not as text
    assert found.existing == (Generation(10, 10, 1), Generation(11, 11, 1), Generation(12, 5, 2))
    assert [found.of_processor(name).number for name in ("a", "b", "new")] == [11, 10, 10]
    assert found.after(Generation(10, 10, 1)) == Generation(11, 11, 1)
    assert found.newest == Generation(13, 6, 3)
    assert found.moving == "redis://host/0"


@pytest.mark.parametrize(
    ("now", "asked", "primaries", "then"),
    [
        ((4, 1), (7, None), 1, (7, 1)),
        ((4, 2), (7, None), 1, (7, 2)),  # somebody has asked for them
        ((12, 12), (6, None), 3, (6, 6)),
        ((12, 12), (24, None), 6, (24, 24)),
        ((12, 12), (7, None), 3, (7, 6)),
        ((16, 1), (16, None), 3, (16, 12)),  # it was moved to a cluster
        ((12, 12), (None, None), 6, (12, 12)),
        ((12, 12), (None, 3), 3, (12, 3)),
    ],
)
def test_a_stream_that_is_divided_anew_is_spread_over_the_servers_as_a_new_one(
    now: tuple[int, int], asked: tuple[int | None, int | None], primaries: int, then: tuple[int, int]
) -> None:
    anew = Generation(3, *now).divided_anew(*asked, primaries=primaries)
    assert anew == Generation(4, *then)
    assert Generation(4, *then).divided_anew(*asked, primaries=primaries) == Generation(5, *then), "again: the same"
