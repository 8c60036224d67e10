"""Appending: everything one process sends to one stream.

One append is in flight at a time; what is sent meanwhile goes together with the next one, so concurrent sends share
round trips by themselves. Every append carries a sequence per partition, so that it can be repeated after a lost reply
without a duplicate.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from uuid import uuid4

from runnel._core.backoff import delays
from runnel._core.entry_ids import consecutive
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.patience import patiently
from runnel._redis.scripts import Appended, AppendStatus, Batch, Entry, append
from runnel.errors import RunnelError, StreamFull
from runnel.instruments import Instruments, SequenceGap

__all__ = ["Limits", "Producer"]

BATCH_ENTRIES = 1_000
"""Entries of one partition in one append: about 2.4 ms of the server's time (100 bytes each, Redis 7.0.15)."""

BATCH_BYTES = 1_000_000
"""Bytes of one append, roughly. Other clients of the server wait for so long, not for longer."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How a stream is bounded; see the settings of the same names. Durations in seconds."""

    partition_size: int
    on_full: str
    on_full_timeout: float
    send_timeout: float


@dataclass(slots=True, eq=False)
class _Parcel:
    """What one call of ``send`` has for one partition."""

    entries: list[Entry]
    sent: asyncio.Future[list[bytes]]
    full_until: float
    ids: list[bytes] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Lane:
    """The parcels for one partition, in order."""

    parcels: deque[_Parcel] = field(default_factory=deque)
    sequence: int = 0
    retry_at: float = 0.0
    waits: Iterator[float] | None = None


class Producer:
    """Sends to one stream, from one event loop."""

    def __init__(self, link: Link, keys: StreamKeys, limits: Limits, instruments: Instruments) -> None:
        self._link = link
        self._keys = keys
        self._limits = limits
        self._instruments = instruments
        self._name = uuid4().hex[:16]
        self._lanes: dict[int, _Lane] = {}
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        # A sequence must outlive every retry that could refer to it.
        self._expiry = int(max(60.0, 4 * limits.send_timeout) * 1000)

    async def send(self, items: Iterable[tuple[int, Entry]]) -> list[bytes]:
        """Append entries. Those for one partition are appended in the order given.

        Arguments:
            items: partition and fields of each entry.

        Returns:
            The id of each entry.

        Raises:
            StreamFull: a partition stayed full. Entries for other partitions were appended.
            RedisUnavailable: no answer within ``send_timeout``. The entries may have been appended.
        """
        loop = asyncio.get_running_loop()
        parcels: dict[int, _Parcel] = {}
        order: list[int] = []
        full_until = time.monotonic() + self._limits.on_full_timeout
        for partition, entry in items:
            order.append(partition)
            parcel = parcels.get(partition)
            if parcel is None:
                parcels[partition] = _Parcel([entry], loop.create_future(), full_until)
            else:
                parcel.entries.append(entry)
        if not parcels:
            return []
        for partition, parcel in parcels.items():
            self._lanes.setdefault(partition, _Lane()).parcels.append(parcel)
        self._more.set()
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="runnel-producer")
        if len(parcels) == 1:
            return await next(iter(parcels.values())).sent
        outcomes = await asyncio.gather(*(parcel.sent for parcel in parcels.values()), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        ids = {partition: iter(parcel.ids) for partition, parcel in parcels.items()}
        return [next(ids[partition]) for partition in order]

    async def close(self) -> None:
        """Wait until everything is sent or has failed."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            self._more.clear()
            ready = self._ready_lanes()
            if ready is None:
                return
            if isinstance(ready, float):
                try:
                    async with asyncio.timeout(ready):
                        await self._more.wait()
                except TimeoutError:
                    pass
                continue
            by_slot: dict[int, list[int]] = {}
            for partition in ready:
                by_slot.setdefault(self._keys.slot_group(partition), []).append(partition)
            for slot_group, partitions in by_slot.items():
                await self._append(slot_group, partitions)

    def _ready_lanes(self) -> list[int] | float | None:
        """The partitions to append to now; or the seconds until there are any; or ``None`` if all is sent."""
        now = time.monotonic()
        ready: list[int] = []
        earliest: float | None = None
        for partition, lane in self._lanes.items():
            if any(parcel.sent.done() for parcel in lane.parcels):  # cancelled by its caller, or failed
                lane.parcels = deque(parcel for parcel in lane.parcels if not parcel.sent.done())
            if not lane.parcels:
                continue
            if lane.retry_at <= now:
                ready.append(partition)
            else:
                earliest = lane.retry_at if earliest is None else min(earliest, lane.retry_at)
        if ready:
            return ready
        return None if earliest is None else earliest - now

    async def _append(self, slot_group: int, partitions: list[int]) -> None:
        """Compose one append, and see it through."""
        batches: list[Batch] = []
        size = 0
        for partition in partitions:
            lane = self._lanes[partition]
            entries: list[Entry] = []
            most = (
                BATCH_ENTRIES if self._limits.partition_size == 0 else min(BATCH_ENTRIES, self._limits.partition_size)
            )
            for parcel in lane.parcels:
                for entry in parcel.entries[len(parcel.ids) :]:
                    if len(entries) == most or size > BATCH_BYTES:
                        break
                    entries.append(entry)
                    size += sum(map(len, entry))
            if entries:
                batches.append(Batch(partition, self._name, lane.sequence + 1, entries))
        if not batches:
            return
        # From here on the composition is fixed: a retry must repeat it to the byte. Callers that are cancelled now
        # have sent nevertheless.
        try:
            answers = await patiently(
                "send",
                lambda: append(
                    self._link,
                    self._keys,
                    slot_group,
                    batches,
                    limit=self._limits.partition_size,
                    trim=self._limits.on_full == "trim",
                    expiry=self._expiry,
                ),
                self._instruments,
                limit=self._limits.send_timeout,
            )
        except RunnelError as error:
            # We do not know what was appended, so these sequences are burnt: go on under a new name.
            self._forget_sequences()
            for batch in batches:
                self._fail(self._lanes[batch.partition], len(batch.entries), error)
            return
        for batch, answer in zip(batches, answers, strict=True):
            self._settle(batch, answer)

    def _settle(self, batch: Batch, answer: Appended) -> None:
        lane = self._lanes[batch.partition]
        match answer.status:
            case AppendStatus.OK | AppendStatus.DUP:
                lane.sequence += 1
                lane.waits = None
                self._deliver(lane, consecutive(answer.detail, len(batch.entries)))
            case AppendStatus.GAP:
                self._instruments.announce(
                    SequenceGap(self._keys.stream, batch.partition, int(answer.detail), lane.sequence + 1)
                )
                self._forget_sequences()
            case AppendStatus.FULL:
                self._wait_for_room(lane, batch, answer.detail.decode())

    def _deliver(self, lane: _Lane, ids: list[bytes]) -> None:
        at = 0
        while at < len(ids):
            parcel = lane.parcels[0]
            part = ids[at : at + len(parcel.entries) - len(parcel.ids)]
            parcel.ids += part
            at += len(part)
            if len(parcel.ids) == len(parcel.entries):
                lane.parcels.popleft()
                if not parcel.sent.done():
                    parcel.sent.set_result(parcel.ids)

    def _wait_for_room(self, lane: _Lane, batch: Batch, processor: str) -> None:
        now = time.monotonic()
        if lane.waits is None:
            lane.waits = delays(0.01, 0.5, random.random)
        lane.retry_at = now + next(lane.waits)
        for parcel in lane.parcels:
            if parcel.sent.done() or (self._limits.on_full == "wait" and now < parcel.full_until):
                continue
            parcel.sent.set_exception(
                StreamFull(
                    f'Partition {batch.partition} of stream "{self._keys.stream}" is full: '
                    f'{self._limits.partition_size} entries are not yet processed by "{processor}". '
                    f"{len(parcel.ids)} of {len(parcel.entries)} events for it were appended. Start more workers, "
                    'raise partition_size, or use on_full="trim" if the oldest events may be dropped.'
                )
            )

    def _fail(self, lane: _Lane, number: int, error: RunnelError) -> None:
        """Fail the parcels that the first ``number`` unsent entries of a lane belong to."""
        for parcel in lane.parcels:
            if number <= 0:
                break
            number -= len(parcel.entries) - len(parcel.ids)
            if not parcel.sent.done():
                parcel.sent.set_exception(error)

    def _forget_sequences(self) -> None:
        self._name = uuid4().hex[:16]
        for lane in self._lanes.values():
            lane.sequence = 0
