"""Appending: everything one process sends to one stream.

One append is in flight at a time; what is sent meanwhile goes together with the next one, so concurrent sends share
round trips by themselves. Every append carries a sequence per partition, so that it can be repeated after a lost reply
without a duplicate.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from runnel._core.backoff import delays
from runnel._core.entry_ids import consecutive
from runnel._redis.link import Link
from runnel._redis.patience import patiently
from runnel._redis.rerouting import Destination, divided
from runnel._redis.scripts import Appended, AppendStatus, Batch, Entry, append
from runnel.errors import RunnelError, StreamFull, StreamMoving, StreamSealed
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


class _Parcel:
    """What one call of ``send`` has for one partition. Its result is the ids of its entries."""

    __slots__ = ("entries", "full_until", "ids", "sent")

    def __init__(self, entries: list[Entry], sent: asyncio.Future[Sequence[str]], full_until: float) -> None:
        self.entries = entries
        self.sent = sent
        self.full_until = full_until
        self.ids: Sequence[str] = ()


@dataclass(slots=True, eq=False)
class _Lane:
    """The parcels for one partition, in order.

    Attributes:
        sequence: the last one that was used.
        confirmed: the last one that is known to be stored; those between had an unknown outcome.
        confirmed_at: when it was stored, on the monotonic clock.
        retry_at: when to try again, while the partition is full.
        waits: how long to wait then.
    """

    parcels: deque[_Parcel] = field(default_factory=deque)
    sequence: int = 0
    confirmed: int = 0
    confirmed_at: float = 0.0
    retry_at: float = 0.0
    waits: Iterator[float] | None = None


def _size(entry: Entry) -> int:
    return len(entry[1]) if len(entry) == 2 else sum(map(len, entry))


class Producer:
    """Sends to one stream, from one event loop.

    Attributes:
        partition_count: of the generation that it sends to.
    """

    def __init__(
        self,
        link: Link,
        destination: Destination,
        limits: Limits,
        instruments: Instruments,
        prepare: Callable[[], Awaitable[Destination]],
    ) -> None:
        """Arguments:
        link: used by this producer and others of the same loop.
        destination: what is known of it so far.
        limits: of the stream.
        instruments: where to announce.
        prepare: what must have been done before the first append, and when there is another generation of the stream;
            what it raises is what the sends raise. Returns where they go.
        """
        self._prepare = prepare
        self._prepared = self._refused = False
        self._link = link
        self._keys = destination.keys
        self.partition_count = destination.partition_count
        self._limits = limits
        self._instruments = instruments
        self._name = uuid4().hex[:16]
        self._lanes: dict[int, _Lane] = {}
        self._task: asyncio.Task[None] | None = None
        self._more = asyncio.Event()
        # A sequence must outlive every retry that could refer to it.
        self._expiry = int(max(60.0, 4 * limits.send_timeout) * 1000)

    def send(self, items: Sequence[tuple[int, Entry]]) -> Awaitable[Sequence[str]]:
        """Append entries. Those for one partition are appended in the order given, and in the order of the calls.

        Arguments:
            items: partition and fields of each entry; at least one.

        Returns:
            The id of each entry, when they are awaited.

        Raises:
            StreamFull: a partition stayed full. Entries for other partitions were appended.
            RedisUnavailable: no answer within ``send_timeout``. The entries may have been appended.
        """
        loop = asyncio.get_running_loop()
        full_until = time.monotonic() + self._limits.on_full_timeout
        if (
            len(items) == 1
        ):  # one of many concurrent sends, perhaps: no dictionary for it, which the collector would visit
            [(partition, entry)] = items
            single = self._enqueue(partition, entry, loop, full_until)
            self._wake(loop)
            return single.sent
        parcels: dict[int, _Parcel] = {}
        for partition, entry in items:
            parcel = parcels.get(partition)
            if parcel is None:
                parcels[partition] = self._enqueue(partition, entry, loop, full_until)
            else:
                parcel.entries.append(entry)
        self._wake(loop)
        return self._all_of([partition for partition, _ in items], parcels)

    def _enqueue(self, partition: int, entry: Entry, loop: asyncio.AbstractEventLoop, full_until: float) -> _Parcel:
        parcel = _Parcel([entry], loop.create_future(), full_until)
        lane = self._lanes.get(partition)
        if lane is None:
            lane = self._lanes[partition] = _Lane()
        lane.parcels.append(parcel)
        return parcel

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._run(), name="runnel-producer")
        self._more.set()

    async def _all_of(self, order: list[int], parcels: dict[int, _Parcel]) -> Sequence[str]:
        """The ids for several partitions, in the order of the entries."""
        outcomes = await asyncio.gather(*(parcel.sent for parcel in parcels.values()), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        ids = {partition: iter(parcel.sent.result()) for partition, parcel in parcels.items()}
        return [next(ids[partition]) for partition in order]

    async def close(self) -> None:
        """Wait until everything is sent or has failed."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            if not self._prepared and not await self._find_out():
                return
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
                if self._prepared:
                    await self._append(slot_group, partitions)

    async def _find_out(self) -> bool:
        """Learn where the events go. False if that cannot be learnt: all that waits has failed."""
        try:
            if self._refused:
                destination = await patiently("send", self._prepare, self._instruments, limit=self._limits.send_timeout)
                if destination.keys == self._keys:
                    raise StreamSealed(
                        f'Stream "{self._keys.stream}" takes nothing any more, but Redis knows of no other generation '
                        "of it: it has lost that. Do the last `runnel stream migrate` again."
                    )
            else:
                try:
                    destination = await self._prepare()
                except StreamMoving:
                    destination = await patiently(
                        "send", self._prepare, self._instruments, limit=self._limits.send_timeout
                    )
        except RunnelError as error:
            for lane in self._lanes.values():
                self._fail(lane, sum(len(parcel.entries) for parcel in lane.parcels), error)
                lane.parcels.clear()
            return False
        self._go_over(destination)
        self._prepared, self._refused = True, False
        return True

    def _go_over(self, destination: Destination) -> None:
        """Send what waits to another generation: all of it, so that equal keys keep their order."""
        same = destination.keys.generation == self._keys.generation
        self._keys = destination.keys
        if same and destination.partition_count == self.partition_count:
            return
        self.partition_count = destination.partition_count
        before, self._lanes = self._lanes, {}
        for lane in before.values():
            for parcel in lane.parcels:
                if parcel.sent.done():
                    continue
                rest = parcel.entries[len(parcel.ids) :]
                try:
                    parts = divided(rest, parcel.ids, parcel.sent, destination.partition_of)
                except RunnelError as error:
                    parcel.sent.set_exception(error)
                    continue
                for partition, entries, sent in parts:
                    self._lanes.setdefault(partition, _Lane()).parcels.append(_Parcel(entries, sent, parcel.full_until))

    def _ready_lanes(self) -> list[int] | float | None:
        """The partitions to append to now; or the seconds until there are any; or ``None`` if all is sent."""
        now = time.monotonic()
        ready: list[int] = []
        earliest: float | None = None
        for partition, lane in self._lanes.items():
            if not lane.parcels:
                continue
            # Those that were cancelled by their callers, or have failed, are not sent.
            alive = [parcel for parcel in lane.parcels if not parcel.sent.done()]
            if len(alive) < len(lane.parcels):
                lane.parcels = deque(alive)
            if not alive:
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
        most = BATCH_ENTRIES if self._limits.partition_size == 0 else min(BATCH_ENTRIES, self._limits.partition_size)
        for partition in partitions:
            lane = self._lanes[partition]
            entries: list[Entry] = []
            for parcel in lane.parcels:
                if len(entries) == most or size > BATCH_BYTES:
                    break
                rest = parcel.entries[len(parcel.ids) :] if parcel.ids else parcel.entries
                if len(entries) + len(rest) <= most and size + (more := sum([_size(e) for e in rest])) <= BATCH_BYTES:
                    entries += rest
                    size += more
                    continue
                for entry in rest:
                    if len(entries) == most or size > BATCH_BYTES:
                        break
                    entries.append(entry)
                    size += _size(entry)
            if entries:
                # What was not used for so long may be forgotten by now; that is no loss.
                expired = time.monotonic() > lane.confirmed_at + self._expiry / 2000
                confirmed = 0 if expired else lane.confirmed
                batches.append(Batch(partition, self._name, lane.sequence + 1, confirmed, entries))
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
            # We do not know what was appended, and it may still arrive. The next sequence makes it arrive too late.
            for batch in batches:
                lane = self._lanes[batch.partition]
                lane.sequence = batch.sequence
                self._fail(lane, len(batch.entries), error)
            return
        for batch, answer in zip(batches, answers, strict=True):
            self._settle(batch, answer)

    def _settle(self, batch: Batch, answer: Appended) -> None:
        lane = self._lanes[batch.partition]
        match answer.status:
            case AppendStatus.OK | AppendStatus.DUP:
                lane.sequence = lane.confirmed = batch.sequence
                lane.confirmed_at = time.monotonic()
                lane.waits = None
                self._deliver(lane, consecutive(answer.detail, len(batch.entries)))
            case AppendStatus.GAP:
                stored = int(answer.detail)
                self._instruments.announce(SequenceGap(self._keys.stream, batch.partition, stored, batch.sequence))
                lane.confirmed = stored  # that is what there is; the batch is sent again
            case AppendStatus.SEALED:
                self._prepared, self._refused = False, True
            case AppendStatus.FULL:
                self._wait_for_room(lane, batch, answer.detail.decode())

    def _deliver(self, lane: _Lane, ids: list[str]) -> None:
        at = 0
        while at < len(ids):
            parcel = lane.parcels[0]
            if len(parcel.entries) == 1:  # one of many concurrent sends
                lane.parcels.popleft()
                if not parcel.sent.done():
                    parcel.sent.set_result([ids[at]])
                at += 1
                continue
            part = ids[at : at + len(parcel.entries) - len(parcel.ids)]
            parcel.ids = [*parcel.ids, *part]
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
