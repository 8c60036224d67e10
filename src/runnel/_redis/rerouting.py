"""Sending somewhere else what was refused, or has waited, because its stream has another generation."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runnel._redis.keys import StreamKeys
from runnel._redis.scripts import Entry

__all__ = ["Destination", "divided"]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the events of a stream go.

    Attributes:
        keys: of the generation.
        partition_count: the number of its partitions.
        partition_of: the partition there of an entry that was composed for another generation. It is decoded for
            that: slow, but only here, so that the hot path need not keep anything for it.
    """

    keys: StreamKeys
    partition_count: int
    partition_of: Callable[[Entry | bytes], int]


def divided(
    entries: Sequence[Entry | bytes],
    appended: Sequence[str],
    sent: "asyncio.Future[list[str]]",
    partition_of: Callable[[Entry | bytes], int],
) -> list[tuple[int, list[Entry | bytes], "asyncio.Future[list[str]]"]]:
    """What one call of ``send`` had for one partition, for the partitions where it belongs now.

    Arguments:
        entries: in order; at least one. Those for equal keys stay together, and in order.
        appended: ids of those of the call that were appended before them.
        sent: what the caller waits for.
        partition_of: where each belongs.

    Returns:
        Partition, entries, and the future of their ids, for each. When all of these have come, ``sent`` has them, in
        the order of the entries.
    """
    partitions = [partition_of(entry) for entry in entries]
    parts: dict[int, list[Entry | bytes]] = {}
    for partition, entry in zip(partitions, entries, strict=True):
        parts.setdefault(partition, []).append(entry)
    if len(parts) == 1 and not appended:
        return [(partitions[0], list(entries), sent)]
    futures = {partition: asyncio.get_running_loop().create_future() for partition in parts}

    def join(_: object) -> None:
        if not all(future.done() for future in futures.values()):
            return
        errors = [future.exception() for future in futures.values() if not future.cancelled()]
        if sent.done():  # given up by its caller
            return
        if error := next((error for error in errors if error is not None), None):
            sent.set_exception(error)
            return
        ids = {partition: iter(future.result()) for partition, future in futures.items()}
        sent.set_result([*appended, *(next(ids[partition]) for partition in partitions)])

    def give_up(whole: "asyncio.Future[list[str]]") -> None:
        if whole.cancelled():
            for future in futures.values():
                future.cancel()

    for future in futures.values():
        future.add_done_callback(join)
    sent.add_done_callback(give_up)
    return [(partition, parts[partition], futures[partition]) for partition in parts]
