"""The scripts of the data slots, one at a time, with each of their answers, on a real server."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runnel._core import entry_ids
from runnel._redis import scripts
from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.link import Link
from runnel._redis.scripts import Acquired, Appended, AppendStatus, Batch, Commit, CommitStatus, Op, Seat, Stale
from runnel.errors import RedisError

pytestmark = pytest.mark.anyio

OK, DUP, GAP, FULL = AppendStatus.OK, AppendStatus.DUP, AppendStatus.GAP, AppendStatus.FULL


@pytest.fixture
def keys(app_name: str) -> StreamKeys:
    return StreamKeys(app_name, "flights")


def batch(
    sequence: bytes | int, count: int = 1, *, partition: int = 0, producer: str = "producer", confirmed: int = 0
) -> Batch:
    return Batch(partition, producer, sequence, confirmed, [(b"data", b"%d" % n) for n in range(count)])


async def append(
    link: Link, keys: StreamKeys, *batches: Batch, limit: int = 0, trim: bool = False, expiry: int = 60_000
) -> list[Appended]:
    return await scripts.append(link, keys, 0, batches, limit=limit, trim=trim, expiry=expiry)


async def fill(link: Link, keys: StreamKeys, count: int, *, partition: int = 0, limit: int = 0) -> list[bytes]:
    """Append under a producer of its own. Returns the ids."""
    producer = f"fill-{next(fillers)}"
    [answer] = await append(link, keys, batch(1, count, partition=partition, producer=producer), limit=limit)
    assert answer.status is OK
    return consecutive(answer.detail, count)


def consecutive(last: bytes, count: int) -> list[bytes]:
    return [entry_id.encode() for entry_id in entry_ids.consecutive(last, count)]


fillers = itertools.count()


async def ids(link: Link, keys: StreamKeys, partition: int = 0) -> list[bytes]:
    return [entry_id for entry_id, _ in await link.call("XRANGE", keys.log(partition), "-", "+")]


async def acquire(
    link: Link, keys: StreamKeys, token: int, *, partition: int = 0, member: str = "m", processor: str = "delays"
) -> Acquired:
    answer = await scripts.acquire(link, keys, processor, partition, token, member)
    assert isinstance(answer, Acquired)
    return answer


async def commit(
    link: Link, keys: StreamKeys, *commits: Commit, member: str = "m", processor: str = "delays"
) -> list[tuple[CommitStatus, bytes]]:
    return await scripts.commit(link, keys, processor, member, 0, commits)


async def delete_log(link: Link, keys: StreamKeys) -> None:
    """And wait for the next millisecond, so that a new log begins with a higher id, as it does in practice."""
    await link.call("DEL", keys.log(0))
    deleted = (await link.call("TIME"))[1]
    while (await link.call("TIME"))[1][:-3] == deleted[:-3]:
        pass


async def stored(link: Link, keys: StreamKeys, partition: int = 0, processor: str = "delays") -> bytes | None:
    value: bytes | None = await link.call("HGET", keys.positions(0, processor), partition)
    return value


async def groups_of(link: Link, keys: StreamKeys, partition: int = 0) -> list[dict[bytes, Any]]:
    groups = await link.call("XINFO", "GROUPS", keys.log(partition))
    return [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in groups]


async def mirror(link: Link, keys: StreamKeys, partition: int = 0, processor: str = "delays") -> tuple[bytes, Any, Any]:
    """What any Redis tool sees of a processor: last delivered id, entries read, lag."""
    for group in await groups_of(link, keys, partition):
        if group[b"name"] == StreamKeys.group_name(processor).encode():
            return group[b"last-delivered-id"], group[b"entries-read"], group[b"lag"]
    raise AssertionError(f"no group {processor}")


# append


async def test_a_batch_is_appended_in_order_and_the_last_id_answered(link: Link, keys: StreamKeys) -> None:
    entries = [(b"data", b"\x00\xff|{}"), (b"a", b"1", b"b", b"2")]
    [answer] = await append(link, keys, Batch(0, "producer", 1, 0, entries))
    found = await link.call("XRANGE", keys.log(0), "-", "+")
    assert [fields for _, fields in found] == [list(entry) for entry in entries]
    assert answer == Appended(OK, found[-1][0])


async def test_the_ids_of_a_batch_are_consecutive_however_long_it_takes(link: Link, keys: StreamKeys) -> None:
    # Redis 7.0 reads the clock at every XADD, also inside a script: 5,000 entries take it some ten milliseconds.
    [answer] = await append(link, keys, batch(1, 5000))
    assert await ids(link, keys) == consecutive(answer.detail, 5000)


async def test_a_repeated_batch_is_answered_alike_and_not_appended_again(link: Link, keys: StreamKeys) -> None:
    [first] = await append(link, keys, batch(1, 3))
    [second] = await append(link, keys, batch(1, 3))
    assert second == Appended(DUP, first.detail)
    assert len(await ids(link, keys)) == 3


async def test_a_batch_before_the_last_one_is_a_duplicate_without_an_id(link: Link, keys: StreamKeys) -> None:
    for sequence in (9, 10):  # as numbers: "9" comes after "10" as text
        await append(link, keys, batch(sequence))
    assert await append(link, keys, batch(9)) == [Appended(DUP, b"")]
    assert len(await ids(link, keys)) == 2


async def test_a_batch_whose_predecessor_arrives_late_shuts_it_out(link: Link, keys: StreamKeys) -> None:
    # 1. the outcome of batch 2 is unknown  2. batch 3 goes on  3. batch 2 comes out of the network
    await append(link, keys, batch(1))
    [answer] = await append(link, keys, batch(3, confirmed=1))
    assert answer.status is OK
    assert await append(link, keys, batch(2, confirmed=1)) == [Appended(DUP, b"")]
    assert len(await ids(link, keys)) == 2


async def test_a_confirmed_batch_whose_sequence_is_gone_is_a_gap(link: Link, keys: StreamKeys) -> None:
    assert await append(link, keys, batch(3, confirmed=2)) == [Appended(GAP, b"0")]


async def test_a_batch_after_a_missing_one_is_a_gap(link: Link, keys: StreamKeys) -> None:
    await append(link, keys, batch(1))
    assert await append(link, keys, batch(3, confirmed=2)) == [Appended(GAP, b"1")]
    assert len(await ids(link, keys)) == 1
    assert [answer.status for answer in await append(link, keys, batch(2), batch(3))] == [OK, OK]


async def test_each_producer_counts_for_itself_in_each_partition(link: Link, keys: StreamKeys) -> None:
    answers = await append(
        link, keys, batch(1), batch(1, partition=1), batch(7, producer="other"), batch(8, producer="other")
    )
    assert [answer.status for answer in answers] == [OK] * 4
    assert (len(await ids(link, keys, 0)), len(await ids(link, keys, 1))) == (3, 1)


async def test_a_sequence_is_forgotten_after_its_expiry(link: Link, keys: StreamKeys) -> None:
    await append(link, keys, batch(1), expiry=60_000)
    assert 50_000 < await link.call("PTTL", keys.sequence(0, "producer")) <= 60_000


async def test_a_full_partition_keeps_a_batch_out_whole_and_names_who_lags(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1, processor="slow")
    await acquire(link, keys, 1, processor="quick")
    sent = await fill(link, keys, 8, limit=10)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[5], 6), processor="quick")
    assert await append(link, keys, batch(1, 3), limit=10) == [Appended(FULL, b"slow")]
    assert await ids(link, keys) == sent
    [answer] = await append(link, keys, batch(2, 2), limit=10)
    assert answer.status is OK


async def test_a_batch_that_was_refused_stays_refused_but_for_one_that_is_all_that_its_producer_has(
    link: Link, keys: StreamKeys
) -> None:
    """1. An attempt is held up on its way, and repeated: full. 2. There is room, and it arrives."""
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 10, limit=10)
    refused = batch(1, 2, producer="p"), batch(1, 2, producer="once", confirmed=-1)
    assert await append(link, keys, *refused, limit=10) == [Appended(FULL, b"delays")] * 2
    await commit(link, keys, Commit(0, 1, b"0-0", sent[-1], 10))
    late, once = await append(link, keys, *refused, limit=10)
    assert late == Appended(FULL, b"delays")
    assert once.status is OK
    assert (await append(link, keys, batch(2, 2, producer="p"), limit=10))[0].status is OK
    assert await append(link, keys, batch(1, 2, producer="p"), limit=10) == [Appended(DUP, b"")]
    assert len(await ids(link, keys)) == 14  # trimming removes whole nodes


async def test_one_full_partition_does_not_keep_the_others_waiting(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1, partition=1)
    await fill(link, keys, 10, partition=1)
    answers = await append(link, keys, *(batch(1, 2, partition=p) for p in (0, 1, 2)), limit=10)
    assert [answer.status for answer in answers] == [OK, FULL, OK]
    assert [len(await ids(link, keys, p)) for p in (0, 1, 2)] == [2, 10, 2]


async def test_a_duplicate_is_a_duplicate_also_in_a_full_partition(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    [first] = await append(link, keys, batch(1, 10), limit=10)
    assert await append(link, keys, batch(1, 10), limit=10) == [Appended(DUP, first.detail)]


async def test_a_processor_without_a_position_yet_is_waited_for(link: Link, keys: StreamKeys) -> None:
    # It is registered because it has acquired another partition of the slot group.
    await acquire(link, keys, 1, partition=1)
    await fill(link, keys, 10, partition=0)
    assert await append(link, keys, batch(1), limit=10) == [Appended(FULL, b"delays")]


async def test_what_is_processed_makes_room(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 10, limit=10)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[3], 4))
    assert (await append(link, keys, batch(1, 5), limit=10))[0].status is FULL
    assert (await append(link, keys, batch(2, 4), limit=10))[0].status is OK
    assert set(sent[4:]) <= set(await ids(link, keys))


async def test_a_guarded_log_stays_near_its_limit(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    position, count = b"0-0", 0
    for _ in range(40):
        sent = await fill(link, keys, 50, limit=200)
        [(status, _)] = await commit(link, keys, Commit(0, 1, position, sent[-1], count + 50))
        assert status is CommitStatus.OK
        position, count = sent[-1], count + 50
    assert len(await ids(link, keys)) <= 200 + 100  # trimming removes whole nodes of 100 entries


async def test_without_a_processor_the_log_is_capped(link: Link, keys: StreamKeys) -> None:
    for _ in range(10):
        sent = await fill(link, keys, 100, limit=200)
    assert 200 <= len(await ids(link, keys)) <= 300
    assert (await ids(link, keys))[-100:] == sent


async def test_the_mode_trim_drops_what_is_not_processed_and_acquire_counts_it(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    for sequence in range(1, 11):
        [answer] = await append(link, keys, batch(sequence, 100), limit=200, trim=True)
        assert answer.status is OK
    left = len(await ids(link, keys))
    assert 200 <= left <= 300
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 1000 - left, 1000 - left, b"")


@pytest.mark.parametrize("registered", [True, False])
async def test_a_batch_above_the_limit_waits_only_for_what_is_before_it(
    link: Link, keys: StreamKeys, registered: bool
) -> None:
    if registered:
        await acquire(link, keys, 1)
    [first] = await append(link, keys, batch(1, 25), limit=10)
    assert first.status is OK
    if registered:
        assert await append(link, keys, batch(2, 25), limit=10) == [Appended(FULL, b"delays")]
        await commit(link, keys, Commit(0, 1, b"0-0", first.detail, 25))
    [second] = await append(link, keys, batch(3, 25), limit=10)
    assert second.status is OK
    assert set(consecutive(second.detail, 25)) <= set(await ids(link, keys))


async def test_a_batch_above_the_limit_for_a_log_that_is_gone_is_appended(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    await link.call("DEL", keys.log(0))
    [answer] = await append(link, keys, batch(1, 25), limit=10)
    assert answer.status is OK


async def test_entries_deleted_by_hand_do_not_keep_a_partition_full(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 10, limit=10)
    await link.call("XDEL", keys.log(0), *sent[:4])
    assert (await append(link, keys, batch(1, 5), limit=10))[0].status is FULL
    assert (await append(link, keys, batch(2, 4), limit=10))[0].status is OK
    assert (await ids(link, keys))[:6] == sent[4:]


async def test_entries_deleted_by_hand_never_cost_another_processor_its_own(link: Link, keys: StreamKeys) -> None:
    # 1. near processes 7 of 10  2. those 7 are deleted by hand  3. far reads the last 3 and counts to 3: it looks the
    # slowest, although its position is the highest  4. trimming below *its* position removes what near still needs
    await acquire(link, keys, 1, processor="near")
    await acquire(link, keys, 1, processor="far")
    sent = await fill(link, keys, 10, limit=10)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[6], 7), processor="near")
    await link.call("XDEL", keys.log(0), *sent[:7])
    await commit(link, keys, Commit(0, 1, b"0-0", sent[9], 3), processor="far")
    sent += await fill(link, keys, 6, limit=10)
    await append(link, keys, batch(1, 2), limit=10)
    assert (await ids(link, keys))[:9] == sent[7:]


# acquire


async def test_the_first_owner_begins_at_the_beginning(link: Link, keys: StreamKeys) -> None:
    await fill(link, keys, 3)
    assert await acquire(link, keys, 100) == Acquired(b"0-0", 0, 0, b"")
    assert await stored(link, keys) == b"100:m|0-0|0"
    assert await mirror(link, keys) == (b"0-0", 0, 3)
    assert await link.call("SMEMBERS", keys.registered(0)) == [b"delays"]


async def test_a_partition_that_has_no_log_yet_can_be_acquired(link: Link, keys: StreamKeys) -> None:
    assert await acquire(link, keys, 1) == Acquired(b"0-0", 0, 0, b"")
    sent = await fill(link, keys, 1)
    assert (await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1)))[0][0] is CommitStatus.OK
    assert await mirror(link, keys) == (sent[0], 1, 0)


async def test_the_next_owner_goes_on_where_the_last_one_committed(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 5)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[1], 2))
    assert await acquire(link, keys, 2, member="n") == Acquired(sent[1], 2, 0, b"")
    assert await stored(link, keys) == b"2:n|" + sent[1] + b"|2"


async def test_acquire_can_be_repeated(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 3)
    assert await acquire(link, keys, 5) == await acquire(link, keys, 5)
    await commit(link, keys, Commit(0, 5, b"0-0", sent[0], 1))
    assert await acquire(link, keys, 5) == Acquired(sent[0], 1, 0, b"")


async def test_a_lower_token_is_stale_and_changes_nothing(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 5)
    before = await stored(link, keys)
    assert await scripts.acquire(link, keys, "delays", 0, 4, "n") == Stale(5)
    assert await scripts.acquire(link, keys, "delays", 0, 5, "n") == Stale(5)  # nor can two members have one token
    assert await stored(link, keys) == before


async def test_tokens_are_compared_as_numbers(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 9)
    await acquire(link, keys, 10)
    assert await scripts.acquire(link, keys, "delays", 0, 9, "m") == Stale(10)
    await acquire(link, keys, 1_763_942_400_001)
    assert await scripts.acquire(link, keys, "delays", 0, 1_763_942_400_000, "m") == Stale(1_763_942_400_001)


async def test_a_new_processor_at_a_trimmed_log_has_lost_nothing(link: Link, keys: StreamKeys) -> None:
    await fill(link, keys, 10)
    await link.call("XTRIM", keys.log(0), "MAXLEN", 4)
    assert await acquire(link, keys, 1) == Acquired(b"0-0", 6, 0, b"")
    assert await mirror(link, keys) == (b"0-0", 6, 4)


@pytest.mark.parametrize("left", [4, 0])
async def test_what_was_trimmed_unprocessed_is_counted_once(link: Link, keys: StreamKeys, left: int) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 10)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[1], 2))
    await link.call("XTRIM", keys.log(0), "MAXLEN", left)
    offset = sent[1] if left else sent[-1]
    assert await acquire(link, keys, 2) == Acquired(offset, 10 - left, 8 - left, b"")
    assert await acquire(link, keys, 2) == Acquired(offset, 10 - left, 0, b"")


async def test_trimming_what_was_processed_is_no_loss(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 10)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[5], 6))
    await link.call("XTRIM", keys.log(0), "MAXLEN", 4)
    assert await acquire(link, keys, 2) == Acquired(sent[5], 6, 0, b"")
    await commit(link, keys, Commit(0, 2, sent[5], sent[9], 10))
    await link.call("XTRIM", keys.log(0), "MAXLEN", 0)
    assert await acquire(link, keys, 3) == Acquired(sent[9], 10, 0, b"")


@pytest.mark.parametrize("left", [4, 0])
async def test_what_was_deleted_by_hand_unprocessed_is_counted_once_the_end_is_reached(
    link: Link, keys: StreamKeys, left: int
) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 10)
    await link.call("XDEL", keys.log(0), *sent[2:5])
    await commit(link, keys, Commit(0, 1, b"0-0", sent[9], 7))  # it has counted what it has seen
    await link.call("XTRIM", keys.log(0), "MAXLEN", left)
    assert await acquire(link, keys, 2) == Acquired(sent[9], 10, 3, b"")
    assert await acquire(link, keys, 2) == Acquired(sent[9], 10, 0, b"")
    assert await mirror(link, keys) == (sent[9], 10, 0)


async def test_deleting_what_was_processed_is_no_loss(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 10)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[9], 10))
    await link.call("XDEL", keys.log(0), *sent[2:5])
    assert await acquire(link, keys, 2) == Acquired(sent[9], 10, 0, b"")


@pytest.mark.parametrize("new", [2, 10])
async def test_a_log_that_was_deleted_and_began_anew_is_told_from_the_old_one(
    link: Link, keys: StreamKeys, new: int
) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 5)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[2], 3))
    await delete_log(link, keys)
    await fill(link, keys, new)
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 0, 0, b"", replaced=True)
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 0, 0, b"")
    assert len(await ids(link, keys)) == new


async def test_a_log_that_was_replaced_before_anything_was_processed_is_told_by_its_group(
    link: Link, keys: StreamKeys
) -> None:
    await acquire(link, keys, 1)
    await fill(link, keys, 5)
    await delete_log(link, keys)
    await fill(link, keys, 5)
    assert (await acquire(link, keys, 2)).replaced
    assert not (await acquire(link, keys, 2)).replaced


async def test_lost_positions_are_taken_from_their_mirror(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 5)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[2], 3))
    await link.call("DEL", keys.positions(0, "delays"))
    assert await acquire(link, keys, 2) == Acquired(sent[2], 3, 0, b"")


async def test_a_position_behind_the_end_is_a_rollback(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    before = await fill(link, keys, 1)
    snapshot = await link.call("DUMP", keys.log(0))
    sent = await fill(link, keys, 2)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[-1], 3))
    await link.call("RESTORE", keys.log(0), 0, snapshot, "REPLACE")
    assert await acquire(link, keys, 2) == Acquired(before[0], 1, 0, sent[-1])
    assert await acquire(link, keys, 2) == Acquired(before[0], 1, 0, b"")


@pytest.mark.parametrize("new", [0, 2])
async def test_a_new_log_with_lower_ids_is_processed_from_its_beginning(link: Link, keys: StreamKeys, new: int) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 3)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[-1], 3))
    await link.call("DEL", keys.log(0))
    for n in range(new):  # the server's clock was set back
        await link.call("XADD", keys.log(0), f"5-{n}", "data", "new")
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 0, 0, b"", replaced=True)
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 0, 0, b"")


async def test_a_group_destroyed_by_hand_comes_back_with_the_next_acquire(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 3)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1))
    await link.call("XGROUP", "DESTROY", keys.log(0), "delays")
    await acquire(link, keys, 2)
    assert await mirror(link, keys) == (sent[0], 1, 2)


@pytest.mark.parametrize("destroyed", ["delays", "delays:mark"])
async def test_either_group_shows_that_the_log_is_the_same(link: Link, keys: StreamKeys, destroyed: str) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 3)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1))
    await link.call("XGROUP", "DESTROY", keys.log(0), destroyed)
    assert await scripts.losses(link, "delays", [keys.log(0)], [(sent[0], 1)]) == [0]
    assert await acquire(link, keys, 2) == Acquired(sent[0], 1, 0, b"")
    names = [group[b"name"] for group in await groups_of(link, keys)]
    assert names == [b"delays", b"delays:mark"], "both are there again"


async def test_without_the_positions_and_their_mirror_the_mark_shows_that_something_is_gone(
    link: Link, keys: StreamKeys
) -> None:
    await acquire(link, keys, 1)
    await fill(link, keys, 3)
    await link.call("DEL", keys.positions(0, "delays"))
    await link.call("XGROUP", "DESTROY", keys.log(0), "delays")
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 0, 0, b"", replaced=True)
    assert await acquire(link, keys, 2) == Acquired(b"0-0", 0, 0, b"")


async def test_the_mark_does_not_look_as_if_it_lagged(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    await fill(link, keys, 3)
    assert {group[b"name"]: group[b"lag"] for group in await groups_of(link, keys)} == {
        b"delays": 3,
        b"delays:mark": None,
    }


async def test_a_processor_with_an_odd_name_is_itself(link: Link, keys: StreamKeys) -> None:
    odd = "a|b:{c}/%41 ä"
    await acquire(link, keys, 1, processor=odd)
    sent = await fill(link, keys, 2)
    assert (await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1), processor=odd))[0][0] is CommitStatus.OK
    assert await mirror(link, keys, processor=odd) == (sent[0], 1, 1)
    assert (await append(link, keys, batch(1, 2), limit=2))[0] == Appended(FULL, StreamKeys.group_name(odd).encode())


# commit


async def test_a_commit_moves_the_position_and_its_mirror(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 5)
    assert await commit(link, keys, Commit(0, 1, b"0-0", sent[2], 3)) == [(CommitStatus.OK, b"0-0")]
    assert await stored(link, keys) == b"1:m|" + sent[2] + b"|3"
    assert await mirror(link, keys) == (sent[2], 3, 2)


async def test_a_repeated_commit_is_a_duplicate_and_changes_nothing(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 2)
    for status in (CommitStatus.OK, CommitStatus.DUP, CommitStatus.DUP):
        [(answer, _)] = await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1))
        assert answer is status
    assert await stored(link, keys) == b"1:m|" + sent[0] + b"|1"


async def test_a_fenced_commit_changes_nothing(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 9)
    sent = await fill(link, keys, 2)
    await acquire(link, keys, 10, member="n")
    before = await stored(link, keys)
    assert await commit(link, keys, Commit(0, 9, b"0-0", sent[0], 1)) == [(CommitStatus.FENCED, b"0-0")]
    # Nor may another member commit under our token.
    assert await commit(link, keys, Commit(0, 10, b"0-0", sent[0], 1)) == [(CommitStatus.FENCED, b"0-0")]
    assert await stored(link, keys) == before
    assert await mirror(link, keys) == (b"0-0", 0, 2)


async def test_a_commit_that_does_not_follow_the_stored_position_is_a_rollback(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 5)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1))
    before = await stored(link, keys)
    answers = await commit(link, keys, Commit(0, 1, sent[2], sent[3], 4))
    assert answers == [(CommitStatus.ROLLBACK, sent[0])]
    assert await stored(link, keys) == before


async def test_a_commit_under_a_token_that_redis_has_lost_is_a_rollback(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 9)
    sent = await fill(link, keys, 1)
    assert await commit(link, keys, Commit(0, 10, b"0-0", sent[0], 1)) == [(CommitStatus.ROLLBACK, b"0-0")]
    await link.call("DEL", keys.positions(0, "delays"))
    assert await commit(link, keys, Commit(0, 9, b"0-0", sent[0], 1)) == [(CommitStatus.ROLLBACK, b"")]
    assert await stored(link, keys) is None


@pytest.mark.parametrize("marked", [True, False])
async def test_a_commit_of_entries_that_only_another_primary_had_is_a_rollback(
    link: Link, keys: StreamKeys, marked: bool
) -> None:
    """Read from a primary that had lost a fail-over; the new one has given out ids around them meanwhile."""
    await acquire(link, keys, 1)
    if not marked:
        await link.call("XGROUP", "DESTROY", keys.log(0), "delays:mark")
    sent = await fill(link, keys, 1)
    later = b"%d-0" % (int(sent[0].split(b"-")[0]) + 5)
    ghost = later.replace(b"-0", b"-1")
    for log in ([sent[0]], [sent[0], later], [sent[0], later, later.replace(b"-0", b"-9")]):
        if len(log) > 1:
            await link.call("XADD", keys.log(0), log[-1], "data", "x")
        assert await commit(link, keys, Commit(0, 1, b"0-0", ghost, 2)) == [(CommitStatus.ROLLBACK, b"0-0")]
        assert await ids(link, keys) == log


@pytest.mark.parametrize("marked", [True, False])
async def test_a_commit_of_entries_that_are_there_or_gone_meanwhile_is_taken(
    link: Link, keys: StreamKeys, marked: bool
) -> None:
    await acquire(link, keys, 1)
    if not marked:
        await link.call("XGROUP", "DESTROY", keys.log(0), "delays:mark")
    sent = await fill(link, keys, 6)
    assert (await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1)))[0][0] is CommitStatus.OK
    await link.call("XDEL", keys.log(0), sent[1])
    assert (await commit(link, keys, Commit(0, 1, sent[0], sent[1], 2)))[0][0] is CommitStatus.OK
    await link.call("XTRIM", keys.log(0), "MINID", sent[4])
    assert (await commit(link, keys, Commit(0, 1, sent[1], sent[3], 4)))[0][0] is CommitStatus.OK
    for group in await groups_of(link, keys):
        assert group[b"pending"] == 0, "asking for an entry leaves nothing behind"


async def test_a_commit_does_not_look_into_the_entry(link: Link, keys: StreamKeys) -> None:
    """That would take as long as the entry is large, for each partition of each commit."""
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 1)
    before = await link.call("INFO", "commandstats")
    assert (await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1)))[0][0] is CommitStatus.OK
    reads = re.compile(rb"cmdstat_x(?:rev)?range:calls=(\d+)")
    assert reads.findall(before) == reads.findall(await link.call("INFO", "commandstats"))


async def test_each_partition_of_a_commit_is_judged_by_itself(link: Link, keys: StreamKeys) -> None:
    sent = {}
    for partition in range(4):
        await acquire(link, keys, 10, partition=partition)
        sent[partition] = await fill(link, keys, 2, partition=partition)
    await commit(link, keys, Commit(1, 10, b"0-0", sent[1][0], 1))
    await acquire(link, keys, 11, partition=2, member="n")
    answers = await commit(
        link, keys, *(Commit(p, 10, b"0-0", sent[p][0], 1) for p in range(4)), Commit(7, 1, b"", b"", 0)
    )
    statuses = [status for status, _ in answers]
    assert statuses == [CommitStatus.OK, CommitStatus.DUP, CommitStatus.FENCED, CommitStatus.OK, CommitStatus.ROLLBACK]
    assert [await mirror(link, keys, p) for p in range(4)] == [
        (sent[0][0], 1, 1),
        (sent[1][0], 1, 1),
        (b"0-0", 0, 2),
        (sent[3][0], 1, 1),
    ]


async def test_a_group_destroyed_by_hand_comes_back_with_the_next_commit(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 3)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1))
    await link.call("XGROUP", "DESTROY", keys.log(0), "delays")
    assert (await commit(link, keys, Commit(0, 1, sent[0], sent[1], 2)))[0][0] is CommitStatus.OK
    assert await mirror(link, keys) == (sent[1], 2, 1)


@pytest.mark.parametrize("processed", [0, 1])
@pytest.mark.parametrize("new", [0, 1, 5])
async def test_a_commit_in_a_log_that_was_replaced_changes_nothing(
    link: Link, keys: StreamKeys, processed: int, new: int
) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 3)
    if processed:
        await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1))
    before = await stored(link, keys)
    await delete_log(link, keys)
    last = (await fill(link, keys, new))[-1] if new else sent[2]
    previous = sent[0] if processed else b"0-0"
    assert (await commit(link, keys, Commit(0, 1, previous, last, 3 + new)))[0][0] is CommitStatus.REPLACED
    assert await stored(link, keys) == before
    assert await link.call("EXISTS", keys.log(0)) == (new > 0)


async def test_a_commit_of_the_same_offset_with_another_count_corrects_the_count(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 3)
    await link.call("XDEL", keys.log(0), sent[0])
    await commit(link, keys, Commit(0, 1, b"0-0", sent[2], 2))
    assert (await commit(link, keys, Commit(0, 1, sent[2], sent[2], 3)))[0][0] is CommitStatus.OK
    assert await acquire(link, keys, 2) == Acquired(sent[2], 3, 0, b"")
    assert await mirror(link, keys) == (sent[2], 3, 0)


# reset


async def test_after_a_reset_the_owner_must_acquire_again(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 4)
    await commit(link, keys, Commit(0, 1, b"0-0", sent[2], 3))
    assert await scripts.reset(link, keys, "delays", 0, sent[0], 1) == sent[2]
    assert await mirror(link, keys) == (sent[0], 1, 3)
    for commits in (Commit(0, 1, sent[2], sent[3], 4), Commit(0, 1, b"0-0", sent[0], 1)):
        assert await commit(link, keys, commits) == [(CommitStatus.RESET, sent[0])]
    assert await acquire(link, keys, 1) == Acquired(sent[0], 1, 0, b"")
    assert await commit(link, keys, Commit(0, 1, sent[0], sent[1], 2)) == [(CommitStatus.OK, sent[0])]


async def test_a_reset_before_there_is_an_owner_says_where_it_begins(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 4)
    assert await scripts.reset(link, keys, "delays", 0, sent[1], 2) == b""
    assert await acquire(link, keys, 1) == Acquired(sent[1], 2, 0, b"")


async def test_a_reset_to_the_end_can_be_acquired(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 4)
    await scripts.reset(link, keys, "delays", 0, sent[-1], 4)
    assert await acquire(link, keys, 2) == Acquired(sent[-1], 4, 0, b"")


async def test_a_move_by_hand_marks_the_log(link: Link, keys: StreamKeys) -> None:
    sent = await fill(link, keys, 4)
    await scripts.reset(link, keys, "delays", 0, sent[1], 2)
    await link.call("XGROUP", "DESTROY", keys.log(0), "delays")
    assert await acquire(link, keys, 1) == Acquired(sent[1], 2, 0, b"")


async def test_a_move_by_hand_in_a_log_that_has_replaced_another_is_counted(link: Link, keys: StreamKeys) -> None:
    await acquire(link, keys, 1)
    sent = await fill(link, keys, 4)
    await link.call("XTRIM", keys.log(0), "MAXLEN", 3)
    assert (await acquire(link, keys, 1)).lost == 1
    await commit(link, keys, Commit(0, 1, b"0-0", sent[1], 2))
    await delete_log(link, keys)
    new = await fill(link, keys, 2)
    before = await stored(link, keys)
    assert await scripts.reset(link, keys, "delays", 0, sent[2], 3, expected=sent[1]) == sent[1]
    assert await stored(link, keys) == before, "whoever knew the old log changes nothing"
    assert await scripts.reset(link, keys, "delays", 0, new[0], 1) == sent[1]
    assert (await scripts.look(link, keys, "delays", [0]))[0].rollbacks == 1
    assert not await link.call("HEXISTS", keys.positions(0, "delays"), "removed:0"), "that was of the old log"
    assert await acquire(link, keys, 2) == Acquired(new[0], 1, 0, b"")


async def test_who_may_not_make_groups_acquires_nothing(link: Link, keys: StreamKeys) -> None:
    await fill(link, keys, 2)
    user = f"user-{keys.app}"
    await link.call("ACL", "SETUSER", user, "on", "nopass", "~*", "&*", "+@all", "-xgroup")
    await link.call("AUTH", user, "any")
    try:
        with pytest.raises(RedisError, match=r"permission|can.t run this command"):
            await acquire(link, keys, 1)
    finally:
        await link.call("AUTH", "default", "")
        await link.call("ACL", "DELUSER", user)
    assert await stored(link, keys) is None


# declare and claim


async def test_a_reset_before_anybody_has_acquired_does_not_look_like_a_new_log(link: Link, keys: StreamKeys) -> None:
    await fill(link, keys, 3)
    await scripts.reset(link, keys, "delays", 0, b"0-0", 0)
    assert await acquire(link, keys, 1) == Acquired(b"0-0", 0, 0, b"")


# losses


async def test_what_is_missing_behind_a_cursor_is_counted(link: Link, keys: StreamKeys) -> None:
    async def look(cursor: bytes, read: int) -> int:
        [found] = await scripts.losses(link, "delays", [keys.log(0)], [(cursor, read)])
        return found

    assert await look(b"5-5", 5) == -1  # there is no log
    sent = await fill(link, keys, 10)
    assert await look(b"0-0", 0) == -1  # that the processor has acquired
    await acquire(link, keys, 1)
    assert await look(b"0-0", 0) == await look(sent[4], 5) == await look(sent[9], 10) == 0
    await link.call("XDEL", keys.log(0), *sent[6:8])
    assert await look(sent[4], 5) == 0  # that is seen later
    assert await look(sent[9], 8) == 2
    await link.call("XTRIM", keys.log(0), "MAXLEN", 2)
    assert await look(sent[4], 5) == 3
    await delete_log(link, keys)
    await fill(link, keys, 7)
    assert await look(sent[4], 5) == await look(sent[9], 8) == -1


# declare and claim


async def test_the_first_to_declare_a_stream_decides(link: Link, keys: StreamKeys) -> None:
    first = {"partition_count": "16", "hasher": "xxh64"}
    assert await scripts.declare(link, keys, first) == first
    assert await scripts.declare(link, keys, {"partition_count": "8", "hasher": "other"}) == first
    assert await scripts.declare(link, keys, {"hasher": "other", "format": "1"}) == first


async def test_a_tick_is_claimed_once(link: Link, app_name: str) -> None:
    assert await scripts.claim(link, app_name, "report", 99, "a")
    assert not await scripts.claim(link, app_name, "report", 99, "b")
    assert await scripts.claim(link, app_name, "report", 100, "b")
    assert not await scripts.claim(link, app_name, "report", 99, "c")
    assert await scripts.claim(link, app_name, "other", 99, "c")


async def test_a_claim_that_is_repeated_is_answered_as_before(link: Link, app_name: str) -> None:
    for _ in range(2):
        assert await scripts.claim(link, app_name, "report", 99, "a")
        assert not await scripts.claim(link, app_name, "report", 99, "b")
    assert await scripts.claim(link, app_name, "report", 100, "b")
    assert not await scripts.claim(link, app_name, "report", 99, "a"), "it is too late for that"
    assert not await scripts.claim(link, app_name, "report", 100, "a")


# quarantine


async def test_only_the_owner_can_mark_a_partition_as_poisoned(link: Link, app_name: str) -> None:
    seat = Seat(ControlKeys.of(app_name, "flights", "delays"), "m", 2, 10_000, 0, 10_000, 10_000)
    beat = await scripts.heartbeat(link, seat, Op.JOIN)
    assert not await scripts.quarantine(link, seat, 0, beat.granted[0] + 1, {"error": "ours? no"})
    assert not await scripts.quarantine(link, seat, 7, 1, {"error": "nobody's"})
    assert not await link.call("EXISTS", seat.keys.parked)
    assert await scripts.quarantine(link, seat, 0, beat.granted[0], {"error": "a|b"})
    assert await link.call("HGETALL", seat.keys.parked) == [b"0", b'm|{"error": "a|b"}']
    assert (await scripts.heartbeat(link, seat, Op.BEAT)).quarantined == {0}


# All of them


async def test_scripts_come_back_after_a_script_flush(link: Link, keys: StreamKeys) -> None:
    async def flush() -> None:
        await link.call("SCRIPT", "FLUSH", "SYNC")

    seat = Seat(ControlKeys.of(keys.app, "flights", "delays"), "m", 2, 10_000, 0, 10_000, 10_000)
    await flush()
    sent = await fill(link, keys, 1)
    await flush()
    await acquire(link, keys, 1)
    await flush()
    assert (await commit(link, keys, Commit(0, 1, b"0-0", sent[0], 1)))[0][0] is CommitStatus.OK
    await flush()
    assert (await scripts.heartbeat(link, seat, Op.JOIN)).known
    await flush()
    assert not await scripts.quarantine(link, seat, 0, 1, {})
    await flush()
    assert await scripts.claim(link, keys.app, "task", 1, "nonce")
    await flush()
    assert await scripts.declare(link, keys, {"a": "b"}) == {"a": "b"}
    await flush()
    assert await scripts.reset(link, keys, "delays", 0, b"0-0", 0) == sent[0]


async def test_a_refused_script_is_an_error_that_says_why(link: Link, keys: StreamKeys) -> None:
    await link.call("SET", keys.log(0), "not a stream")
    with pytest.raises(RedisError, match="WRONGTYPE"):
        await append(link, keys, batch(1))
    assert await link.call("PING") == b"PONG"  # the connection goes on


# All of them at random


@dataclass
class Hand:
    """What one owner believes of a partition."""

    member: str
    token: int = 0
    position: bytes = b"0-0"
    count: int = 0


@dataclass
class Model:
    """What must be true of a partition."""

    token: dict[str, tuple[int, str]] = field(default_factory=dict)
    position: dict[str, bytes] = field(default_factory=dict)
    chain: dict[str, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    appended: list[bytes] = field(default_factory=list)
    deleted: set[bytes] = field(default_factory=set)
    before_its_time: dict[str, set[bytes]] = field(default_factory=dict)


PROCESSORS = ("a", "b")
steps = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 5)),
    st.tuples(st.just("retry"), st.just(0)),
    st.tuples(st.just("delete"), st.integers(0, 20)),
    st.tuples(
        st.just("acquire"), st.tuples(st.sampled_from(PROCESSORS), st.integers(0, 1), st.sampled_from([0, 0, 1, -1]))
    ),
    st.tuples(st.just("commit"), st.tuples(st.sampled_from(PROCESSORS), st.integers(0, 1), st.integers(1, 4))),
    st.tuples(st.just("commit"), st.tuples(st.sampled_from(PROCESSORS), st.integers(0, 1), st.integers(1, 4))),
)
examples = itertools.count()


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=st.lists(steps, min_size=5, max_size=40))
async def test_whatever_two_owners_do_positions_form_a_chain_and_nothing_unprocessed_is_trimmed(
    link: Link, app_name: str, plan: Sequence[tuple[str, Any]]
) -> None:
    keys = StreamKeys(f"{app_name}-{next(examples)}", "flights")
    hands = {(processor, n): Hand(f"m{n}") for processor in PROCESSORS for n in range(2)}
    model = Model()
    highest, sequence = 10, 0

    for name, argument in plan:
        if name == "append":
            [answer] = await append(link, keys, batch(sequence + 1, argument), limit=8)
            assert answer.status in (OK, FULL)
            if answer.status is OK:
                sequence += 1
                model.appended += consecutive(answer.detail, argument)
            else:
                assert model.position
        elif name == "retry" and sequence:
            assert (await append(link, keys, batch(sequence, 3), limit=8))[0].status is DUP
        elif name == "delete" and model.appended:
            target = model.appended[argument % len(model.appended)]
            model.deleted.add(target)
            await link.call("XDEL", keys.log(0), target)
        elif name == "acquire":
            processor, n, newer = argument
            hand = hands[processor, n]
            if newer == 1:
                highest += 1
            token = highest + min(newer, 0)
            got = await scripts.acquire(link, keys, processor, 0, token, hand.member)
            seen, owner = model.token.get(processor, (0, ""))
            if token < seen or (token == seen and owner != hand.member):
                assert got == Stale(seen)
            else:
                assert isinstance(got, Acquired)
                assert not got.rolled_back
                model.token[processor] = (token, hand.member)
                before = model.position.get(processor, b"0-0")
                if processor not in model.position:
                    model.before_its_time[processor] = set(model.appended) - set(await ids(link, keys))
                assert entry_ids.parse(got.offset) >= entry_ids.parse(before)
                skipped = [e for e in model.appended if between(before, e, got.offset)]
                assert set(skipped) <= model.deleted | model.before_its_time[processor]
                model.position[processor] = got.offset
                model.chain.setdefault(processor, []).append((before, got.offset))
                hand.token, hand.position, hand.count = token, got.offset, got.count
        elif name == "commit":
            processor, n, steps_ahead = argument
            hand = hands[processor, n]
            read = await link.call("XRANGE", keys.log(0), b"(" + hand.position, "+", "COUNT", steps_ahead)
            if not hand.token or not read:
                continue
            new = Commit(0, hand.token, hand.position, read[-1][0], hand.count + len(read))
            [(status, at)] = await commit(link, keys, new, member=hand.member, processor=processor)
            assert at == model.position[processor]
            if model.token[processor] == (hand.token, hand.member):
                # The owner's own view is never wrong, so its commit is never refused.
                assert status is CommitStatus.OK
                model.chain[processor].append((hand.position, new.offset))
                model.position[processor] = hand.position = new.offset
                hand.count = new.count
            else:
                assert status is CommitStatus.FENCED

        left = set(await ids(link, keys))
        for processor, position in model.position.items():
            value = await stored(link, keys, processor=processor)
            token, member = model.token[processor]
            assert value is not None
            assert value.startswith(b"%d:%s|%s|" % (token, member.encode(), position))
            unprocessed = {e for e in model.appended if entry_ids.parse(e) > entry_ids.parse(position)}
            assert unprocessed - model.deleted - model.before_its_time[processor] <= left

    for links in model.chain.values():
        assert all(a[1] == b[0] for a, b in itertools.pairwise(links))


def between(low: bytes, entry: bytes, high: bytes) -> bool:
    return entry_ids.parse(low) < entry_ids.parse(entry) <= entry_ids.parse(high)
