"""Copying what one server holds of a stream to another one. Nobody appends, and nobody processes, meanwhile.

All of it may be repeated: it goes on behind what is there.
"""

from collections.abc import Sequence
from typing import Any

from runnel._core.generations import Generation
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.queries import entries
from runnel._redis.scripts import ALL, _Script
from runnel.errors import RedisError

__all__ = ["copy_log", "copy_pause", "copy_positions", "copy_seals", "copy_sequences", "differences"]

_copy = _Script("copy", includes=("log",))

AT_ONCE = 500
"""Entries copied by one call."""

SCANNED = 1_000
"""Keys looked at by one SCAN."""


async def copy_log(source: Link, target: Link, keys: StreamKeys, partition: int) -> int:
    """Copy the entries of a partition with their ids, and the numbers that the log counts by. Returns how many."""
    log = keys.log(partition)
    there = await _describe(source, log)
    if there is None:
        return 0
    here = await _describe(target, log)
    if here is None:
        await target.call("XGROUP", "CREATE", log, "none", "0-0", "MKSTREAM")
        await target.call("XGROUP", "DESTROY", log, "none")
    after: bytes = b"0-0" if here is None else here[b"last-generated-id"]
    copied = 0
    while part := await entries(source, keys, partition, b"(" + after, count=AT_ONCE):
        await _copy(target, (log,), [word for entry_id, flat in part for word in (entry_id, len(flat), *flat)])
        copied, after = copied + len(part), part[-1][0]
    await target.call(
        *("XSETID", log, there[b"last-generated-id"]),
        *("ENTRIESADDED", there[b"entries-added"], "MAXDELETEDID", there[b"max-deleted-entry-id"]),
    )
    return copied


async def copy_positions(source: Link, target: Link, keys: StreamKeys, generation: Generation) -> None:
    """Copy who is registered, the positions, and their mirrors in consumer groups."""
    for slot_group in range(keys.slot_groups):
        for name in await source.call("SMEMBERS", keys.registered(slot_group)):
            await target.call("SADD", keys.registered(slot_group), name)
            positions = keys.positions_prefix(slot_group) + name.decode()
            flat = await source.call("HGETALL", positions)
            if not flat:
                continue
            await target.call("HSET", positions, *flat)
            stored = dict(zip(flat[::2], flat[1::2], strict=True))
            for partition in range(generation.partition_count):
                if keys.slot_group(partition) == slot_group and (value := stored.get(b"%d" % partition)):
                    _, offset, count = value.split(b"|")[:3]
                    await _mirror(target, keys.log(partition), name, offset, count)


async def copy_seals(source: Link, target: Link, keys: StreamKeys) -> None:
    """Copy the seals of an earlier generation."""
    for slot_group in range(keys.slot_groups):
        if (seal := await source.call("GET", keys.sealed(slot_group))) is not None:
            await target.call("SET", keys.sealed(slot_group), seal)


async def _mirror(target: Link, log: str, group: bytes, offset: bytes, count: bytes) -> None:
    try:
        await target.call("XGROUP", "CREATE", log, group, offset, "ENTRIESREAD", count)
    except RedisError as error:
        if not str(error).startswith("BUSYGROUP"):
            raise


async def copy_pause(source: Link, target: Link, keys: StreamKeys, processor: str) -> None:
    """Copy that a person has paused a processor."""
    parked = keys.control(processor).parked
    if (pause := await source.call("HGET", parked, ALL)) is not None:
        await target.call("HSET", parked, ALL, pause)


async def copy_sequences(source: Link, target: Link, everything: Sequence[StreamKeys]) -> None:
    """Copy what producers have sent last, which keeps what is sent once (dead letters) from being sent twice."""
    prefixes = tuple(keys.sequences_prefix(slot_group) for keys in everything for slot_group in range(keys.slot_groups))
    cursor: Any = b"0"
    while True:
        cursor, names = await source.call("SCAN", cursor, "MATCH", "*:seq:*", "COUNT", SCANNED)
        for name in names:
            if name.decode(errors="replace").startswith(prefixes):
                value, left = await source.call("GET", name), await source.call("PTTL", name)
                if value is not None and left > 0:
                    await target.call("SET", name, value, "PX", left)
        if cursor == b"0":
            return


async def differences(source: Link, target: Link, keys: StreamKeys, partition: int) -> list[str]:
    """What of a partition is not the same on both servers, in words."""
    log = keys.log(partition)
    there, here = await _describe(source, log) or {}, await _describe(target, log) or {}
    return [
        f"partition {partition}: {name.decode()} {there.get(name)!r} there, {here.get(name)!r} here"
        for name in (b"length", b"last-generated-id", b"entries-added")
        if there.get(name) != here.get(name)
    ]


async def _describe(link: Link, log: str) -> dict[bytes, Any] | None:
    if not await link.call("EXISTS", log):
        return None
    flat = await link.call("XINFO", "STREAM", log)
    return dict(zip(flat[::2], flat[1::2], strict=True))
