"""Copying what one server holds of a stream to another one. Nobody appends, and nobody processes, meanwhile.

All of it may be repeated: it goes on behind what is there. Entries and positions are confirmed as the stream asks for.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from runnel._core.generations import Generation
from runnel._redis.durability import Confirmation
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.queries import entries
from runnel._redis.scripts import ALL, _Script
from runnel.errors import RedisError

__all__ = ["copy_log", "copy_pause", "copy_positions", "copy_seals", "copy_sequences", "differences"]

_copy = _Script("copy", includes=("log",))

AT_ONCE = 500
"""Entries copied by one call at most."""

FIRST = 16
"""Entries copied by the first call: it is not known yet how large they are."""

BYTES = 1_000_000
"""Bytes copied by one call, roughly: other clients of the servers wait for so long."""

SCANNED = 1_000
"""Keys looked at by one SCAN."""


async def copy_log(source: Link, target: Link, keys: StreamKeys, partition: int, confirm: Confirmation) -> int:
    """Copy the entries of a partition with their ids, and the numbers that the log counts by. Returns how many."""
    log = keys.log(partition)
    there = await _describe(source, log)
    if there is None:
        return 0
    here = await _describe(target, log)
    if here is None:
        await target.at(log).call("XGROUP", "CREATE", log, "none", "0-0", "MKSTREAM")
        await target.at(log).call("XGROUP", "DESTROY", log, "none")
    after: bytes = b"0-0" if here is None else here[b"last-generated-id"]
    copied, most = 0, FIRST
    while part := await entries(source, keys, partition, b"(" + after, count=most):
        await _copy(target, (log,), [word for entry_id, flat in part for word in (entry_id, len(flat), *flat)])
        copied, after = copied + len(part), part[-1][0]
        size = sum([len(word) for _, flat in part for word in flat])
        most = min(AT_ONCE, 2 * most, max(1, BYTES * len(part) // max(1, size)))
    await target.at(log).call(
        *("XSETID", log, there[b"last-generated-id"]),
        *("ENTRIESADDED", there[b"entries-added"], "MAXDELETEDID", there[b"max-deleted-entry-id"]),
        confirm=confirm,
    )
    return copied


async def copy_positions(
    source: Link, target: Link, keys: StreamKeys, generation: Generation, confirm: Confirmation
) -> None:
    """Copy who is registered, the positions, and the consumer groups that belong to them."""
    for slot_group in range(keys.slot_groups):
        registered = keys.registered(slot_group)
        for name in await source.at(registered).call("SMEMBERS", registered):
            await target.at(registered).call("SADD", registered, name)
            positions = keys.positions_prefix(slot_group) + name.decode()
            flat = await source.at(positions).call("HGETALL", positions)
            if flat:
                await target.at(positions).call("HSET", positions, *flat, confirm=confirm)
            for partition in range(generation.partition_count):
                if keys.slot_group(partition) == slot_group:
                    await _copy_groups(source, target, keys.log(partition), name.decode(), confirm)


async def copy_seals(source: Link, target: Link, keys: StreamKeys) -> None:
    """Copy the seals of an earlier generation."""
    for slot_group in range(keys.slot_groups):
        sealed = keys.sealed(slot_group)
        if (seal := await source.at(sealed).call("GET", sealed)) is not None:
            await target.at(sealed).call("SET", sealed, seal)


async def _copy_groups(source: Link, target: Link, log: str, processor: str, confirm: Confirmation) -> None:
    """Copy a processor's consumer groups of a log, if they are there: without them, its position is not of this log."""
    if await _describe(source, log) is None:
        return
    names = (processor, StreamKeys.mark_name(processor))
    for flat in await source.at(log).call("XINFO", "GROUPS", log):
        group = dict(zip(flat[::2], flat[1::2], strict=True))
        if (name := group[b"name"].decode(errors="replace")) not in names:
            continue
        read = -1 if group[b"entries-read"] is None else group[b"entries-read"]
        try:
            command = ("XGROUP", "CREATE", log, name, group[b"last-delivered-id"], "ENTRIESREAD", read)
            await target.at(log).call(*command, confirm=confirm)
        except RedisError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


async def copy_pause(source: Link, target: Link, keys: StreamKeys, processor: str) -> None:
    """Copy that a person has paused a processor."""
    parked = keys.control(processor).parked
    if (pause := await source.at(parked).call("HGET", parked, ALL)) is not None:
        await target.at(parked).call("HSET", parked, ALL, pause)


async def copy_sequences(source: Link, target: Link, everything: Sequence[StreamKeys]) -> None:
    """Copy what producers have sent last, which keeps what is sent once (dead letters) from being sent twice."""
    prefixes = tuple(keys.sequences_prefix(slot_group) for keys in everything for slot_group in range(keys.slot_groups))
    for primary in await source.endpoint.primaries():  # SCAN knows the keys of one server only
        link = primary.link()
        try:
            async for name in _scan(link, prefixes):
                line = source.at(name)
                value, left = await line.call("GET", name), await line.call("PTTL", name)
                if value is not None and left > 0:
                    await target.at(name).call("SET", name, value, "PX", left)
        finally:
            await link.close()


async def _scan(link: Link, prefixes: tuple[str, ...]) -> AsyncIterator[str]:
    """The keys of a server that begin with any of these."""
    cursor: Any = b"0"
    while True:
        cursor, names = await link.call("SCAN", cursor, "MATCH", "*:seq:*", "COUNT", SCANNED)
        for name in names:
            if (text := name.decode(errors="replace")).startswith(prefixes):
                yield text
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
    if not await link.at(log).call("EXISTS", log):
        return None
    flat = await link.at(log).call("XINFO", "STREAM", log)
    return dict(zip(flat[::2], flat[1::2], strict=True))
