"""Appending: everything one process sends to one stream.

Of each partition, one append is in flight at a time; what is sent meanwhile goes together with the next one, so
concurrent sends share round trips by themselves. Where a stream has several slot groups, there is one in flight per
group, so that none waits while the server of another is away. Every append carries a sequence per partition, so that it
can be repeated after a lost reply without a duplicate.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from runnel._core.backoff import delays
from runnel._core.entry_ids import consecutive
from runnel._redis.begun import begin
from runnel._redis.durability import Confirmation
from runnel._redis.lane import Lane
from runnel._redis.link import Link
from runnel._redis.patience import patiently
from runnel._redis.rerouting import Destination, divided
from runnel._redis.scripts import Appended, AppendStatus, Batch, Entry, append
from runnel._redis.sending import Sending
from runnel.errors import RunnelError, StreamFull, StreamMoving, StreamSealed
from runnel.instruments import Instruments, SequenceGap

__all__ = ["Limits", "Producer"]

BATCH_ENTRIES = 1_000
"""Entries of one partition in one append: about 2.4 ms of the server's time (100 bytes each, Redis 7.0.15)."""

BATCH_BYTES = 1_000_000
"""Bytes of one append, roughly. Other clients of the server wait for so long, not for longer."""

PLENTY = 500
"""Entries that are worth an append of their own, so that client and server work at the same time. From one ``send``, so
many go as three appends, of a quarter, a half and a quarter of the partitions, over two connections: while the server
works at one, we compose or settle another (``send`` of 1,000: 3.4 times a pipeline with one append, 3.55 with two
halves, 3.73 so). From concurrent ones, they go as soon as they are together, while the rest is still encoded."""

EXPIRY = 2 * 3600.0
"""Seconds that the server remembers the last sequence of a producer in a partition. Longer than any retry that could
refer to it, by more than an hour: by so much may the server's clock jump without a loss being announced, or a
repeated append stored twice. 136 bytes each (Valkey 9.1.2)."""

_monotonic = time.monotonic


@dataclass(frozen=True, slots=True)
class Limits:
    """How a stream is bounded; see the settings of the same names. Durations in seconds."""

    partition_size: int
    on_full: str
    on_full_timeout: float
    send_timeout: float


@dataclass(slots=True)
class _Line:
    """A connection, and the task that sends over it, while there is something to send."""

    link: Link
    task: asyncio.Task[None] | None = None

    @property
    def free(self) -> bool:
        return self.task is None or self.task.done()


def _size_of_fields(entry: Sequence[bytes]) -> int:
    return sum(map(len, entry))


class Producer:
    """Sends to one stream, from one event loop.

    Attributes:
        loop: that loop; ``None`` when it is closed.
        partition_count: of the generation that it sends to.
    """

    def __init__(
        self,
        links: Sequence[Link],
        destination: Destination,
        field: bytes,
        limits: Limits,
        confirm: Confirmation,
        instruments: Instruments,
        prepare: Callable[[], Awaitable[Destination]],
    ) -> None:
        """Arguments:
        links: used by this producer and others of the same loop; those behind the first one when there is much to send.
        destination: where the events go, as far as is known.
        field: the only one of every entry, which is then given as its value; empty where there are several.
        limits: of the stream.
        confirm: where the entries must be stored.
        instruments: where to announce.
        prepare: what must have been done before the first append, and when there is another generation of the stream;
            what it raises is what the sends raise. Returns where they go.
        """
        self._prepare = prepare
        self._prepared = self._refused = self._finding_out = False
        self.loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        self._loop = self.loop
        self._lines = [_Line(link) for link in links]
        self._keys = destination.keys
        self.partition_count = destination.partition_count
        self._field = field
        self._size_of: Callable[[Any], int] = len if field else _size_of_fields
        self._limits = limits
        self._confirm = confirm
        self._most = BATCH_ENTRIES if limits.partition_size == 0 else min(BATCH_ENTRIES, limits.partition_size)
        self._instruments = instruments
        self._name = uuid4().hex[:16]
        self._lanes: defaultdict[int, Lane] = defaultdict(Lane)
        self._waiting: dict[int, Lane] = {}
        """Those with parcels. With 1,024 partitions, a look at each of them takes 0.1 ms per lone send."""
        self._appending: set[int] = set()
        """Slot groups with an append in flight, where there are several."""
        self._fresh = 0
        """Entries that came since the last time that an append was composed."""
        self._alone = False
        """Whether the last append had one entry. Else the next ones come together as well, and none must go before the
        others, which would have to wait for it: twice the round trips."""
        self._more = asyncio.Event()
        self._expiry = int(max(EXPIRY, 4 * limits.send_timeout) * 1000)

    def send_one(self, partition: int, entry: Entry | bytes) -> Sending:
        """Append an entry; as :meth:`send`, of which it is the short form.

        Many at once are a hot path: 1,000 of them take 7.5 ms of CPU where a pipeline of XADD takes 17.7.
        """
        sent = Sending(loop=self._loop)
        lane = self._lanes[partition]
        if not lane.parcels:
            self._waiting[partition] = lane
        lane.entries.append(entry)
        lane.parcels.append((sent, 1, _monotonic()))
        self._fresh += 1
        if self._fresh == 1:
            self._loop.call_soon(self._start)  # those that follow in the same turn of the loop go with it
            if self._alone:
                sent.begin = self._start  # but who awaits this one is alone, as before
        elif self._fresh == PLENTY:
            self._start()  # the rest is still to be encoded
        return sent

    def send(self, partitions: Sequence[int], entries: Iterable[Entry | bytes]) -> Sending:
        """Append entries. Those for one partition are appended in the order given, and in the order of the calls.

        Arguments:
            partitions: of each entry.
            entries: the fields of each, or the value where there is only one.

        Returns:
            The id of each entry.

        Raises:
            StreamFull: a partition stayed full. Entries for other partitions were appended.
            RedisUnavailable: no answer within ``send_timeout``. The entries may have been appended.
        """
        now = _monotonic()
        grouped: defaultdict[int, list[Entry | bytes]] = defaultdict(list)
        for partition, entry in zip(partitions, entries, strict=True):
            grouped[partition].append(entry)
        parcels: dict[int, asyncio.Future[list[str]]] = {}
        for partition, group in grouped.items():
            parcels[partition] = self._loop.create_future()
            lane = self._waiting[partition] = self._lanes[partition]
            lane.entries += group
            lane.parcels.append((parcels[partition], len(group), now))
        self._fresh += len(partitions)
        self._start(len(self._lines))
        return self._whole(partitions, parcels)

    def _whole(self, partitions: Sequence[int], parcels: dict[int, asyncio.Future[list[str]]]) -> Sending:
        """What is done when all parcels are; cancelled, it cancels them."""
        whole = Sending(loop=self._loop)

        def arrived(outcome: asyncio.Future[list[BaseException | list[str]]]) -> None:
            if whole.done():
                return
            for answer in outcome.result():
                if isinstance(answer, BaseException):
                    whole.set_exception(answer)
                    return
            ids = {partition: iter(sent.result()) for partition, sent in parcels.items()}
            whole.set_result([next(ids[partition]) for partition in partitions])

        def done(_: asyncio.Future[list[str]]) -> None:
            if whole.cancelled():
                for sent in parcels.values():
                    sent.cancel()

        asyncio.gather(*parcels.values(), return_exceptions=True).add_done_callback(arrived)
        whole.add_done_callback(done)
        return whole

    async def close(self) -> None:
        """Wait until everything is sent or has failed."""
        if self._waiting:
            self._start()
        self.loop = None
        while tasks := [line.task for line in self._lines if line.task is not None and not line.task.done()]:
            await asyncio.wait(tasks)

    def _start(self, most: int = 1) -> None:
        """Send what waits, over so many connections; where they are not free, it goes when one of them is again."""
        self._more.set()
        if self._prepared and self._keys.slot_groups > 1:
            self._start_groups()
            return
        waiting = sum([len(lane.entries) for lane in self._waiting.values() if not lane.under_way])
        if waiting < PLENTY or not self._prepared:
            most = 1
        share = waiting if most == 1 else waiting // (2 * most)
        for line in self._lines[:most]:
            if not line.free:
                continue
            sending = self._run(line.link, share)
            share = waiting // most
            if self._prepared and line.link.ready:
                line.task = begin(self._loop, sending)
            else:
                line.task = self._loop.create_task(sending, name="runnel-producer")

    def _start_groups(self) -> None:
        """Send to each slot group that waits, and has no append in flight, over a line of its own."""
        groups = {self._keys.slot_group(partition) for partition in self._waiting} - self._appending
        free = [line for line in self._lines if line.free]
        for line, _ in zip(free, groups, strict=False):
            share = BATCH_ENTRIES * len(self._waiting)
            line.task = self._loop.create_task(self._run(line.link, share), name="runnel-producer")

    async def _run(self, link: Link, share: int) -> None:
        """Send until nothing waits that is not under way already; at first, only so many entries or a little more."""
        try:
            while True:
                if not self._prepared and not await self._find_out():
                    return
                if not self._waiting:
                    return
                self._more.clear()
                if batches := self._compose(share):
                    share = BATCH_ENTRIES * len(self._lanes)
                    await self._append(link, batches)
                    if self._alone and self._waiting:
                        await asyncio.sleep(0)  # who was alone sends again, together with those that have come
                    continue
                retries = [lane.retry_at for _, lane in self._idle()]
                if not retries:
                    return
                # Not asyncio.timeout: this may be where `begin` has got to, within a task of somebody else, and that is
                # the one which it would cancel.
                timer = self._loop.call_later(min(retries) - _monotonic(), self._more.set)
                await self._more.wait()
                timer.cancel()
        finally:
            self._fresh = 0  # whatever has ended this, the next send starts it again

    async def _find_out(self) -> bool:
        """Learn where the events go. False if it cannot be learnt, and all that waits has failed; or if who comes back
        last with an append that is under way will do it, and send everything then.
        """
        if self._finding_out or any(lane.under_way for lane in self._waiting.values()):
            return False
        self._finding_out = True
        try:
            self._go_over(await self._destination())
        except RunnelError as error:
            for lane in self._waiting.values():
                lane.fail(len(lane.entries), error)
            for partition, lane in [*self._waiting.items()]:
                self._leave_out(partition, lane)
            return False
        finally:
            self._finding_out = False
        self._prepared, self._refused = True, False
        links = [line.link for line in self._lines]
        self._lines += [_Line(links[n % len(links)]) for n in range(len(links), self._keys.slot_groups)]
        if self._keys.slot_groups > 1:
            self._start_groups()
        return True

    async def _destination(self) -> Destination:
        if not self._refused:
            with suppress(StreamMoving):
                return await self._prepare()
        found = await patiently("send", self._prepare, self._instruments, limit=self._limits.send_timeout)
        if self._refused and found.keys == self._keys:
            raise StreamSealed(
                f'Stream "{self._keys.stream}" takes nothing any more, but Redis knows of no other generation of it: '
                "it has lost that. Do the last `runnel stream migrate` again."
            )
        return found

    def _go_over(self, destination: Destination) -> None:
        """Send what waits to another generation: all of it, so that equal keys keep their order."""
        same = destination.keys.generation == self._keys.generation
        self._keys = destination.keys
        if same and destination.partition_count == self.partition_count:
            return
        self.partition_count = destination.partition_count
        before, self._waiting = self._waiting, {}
        self._lanes.clear()
        for lane in before.values():
            for (sent, _, since), entries, appended in lane.left():
                if sent.done():
                    continue
                try:
                    parts = divided(entries, appended, sent, destination.partition_of)
                except RunnelError as error:
                    sent.set_exception(error)
                    continue
                for partition, part, future in parts:
                    there = self._waiting[partition] = self._lanes[partition]
                    there.entries += part
                    there.parcels.append((future, len(part), since))

    def _leave_out(self, partition: int, lane: Lane) -> bool:
        """Forget what was given up or has failed. True if nothing is left in the lane, and it is left out itself."""
        lane.leave_out()
        if not lane.parcels:
            del self._waiting[partition]
        return not lane.parcels

    def _idle(self) -> list[tuple[int, Lane]]:
        """What waits, and is not under way nor behind what is."""
        if not self._appending:
            return [(partition, lane) for partition, lane in self._waiting.items() if not lane.under_way]
        return [
            (partition, lane)
            for partition, lane in self._waiting.items()
            if self._keys.slot_group(partition) not in self._appending
        ]

    def _compose(self, share: int) -> list[Batch]:
        """The next append: of partitions that are in the same slot, until so many entries are together."""
        self._fresh = 0
        now = _monotonic()
        batches: list[Batch] = []
        taken, room, slot_group = 0, BATCH_BYTES, -1
        for partition, lane in self._idle():
            if self._leave_out(partition, lane) or lane.retry_at > now:
                continue
            if batches and self._keys.slot_group(partition) != slot_group:
                continue
            entries, size = lane.first(self._most, room, self._size_of)
            # What was not used for so long may be forgotten by now; that is no loss.
            expired = now > lane.confirmed_at + self._expiry / 2000
            confirmed = 0 if expired else lane.confirmed
            batches.append(Batch(partition, self._name, lane.sequence + 1, confirmed, entries, self._field))
            lane.under_way = True
            slot_group = self._keys.slot_group(partition)
            taken, room = taken + len(entries), room - size
            if taken >= share or room < 0:
                break
        if batches:
            self._alone = taken == 1
        if batches and self._keys.slot_groups > 1:
            self._appending.add(slot_group)
        return batches

    async def _append(self, link: Link, batches: Sequence[Batch]) -> None:
        """See an append through. Its composition is fixed: a retry must repeat it to the byte.

        Callers that are cancelled meanwhile have sent nevertheless.
        """
        try:
            answers = await patiently(
                "send",
                lambda: append(
                    link,
                    self._keys,
                    self._keys.slot_group(batches[0].partition),
                    batches,
                    limit=self._limits.partition_size,
                    trim=self._limits.on_full == "trim",
                    expiry=self._expiry,
                    confirm=self._confirm,
                ),
                self._instruments,
                limit=self._limits.send_timeout,
            )
        except Exception as error:  # also what a serializer has returned and cannot be sent: nobody must wait for ever
            # We do not know what was appended, and it may still arrive. The next sequence makes it arrive too late.
            for batch in batches:
                lane = self._lanes[batch.partition]
                lane.sequence = batch.sequence
                lane.fail(len(batch.entries), error)
            return
        finally:
            self._appending.discard(self._keys.slot_group(batches[0].partition))
            for batch in batches:
                self._lanes[batch.partition].under_way = False
        for batch, answer in zip(batches, answers, strict=True):
            self._settle(batch, answer)
            if not self._lanes[batch.partition].parcels:
                del self._waiting[batch.partition]

    def _settle(self, batch: Batch, answer: Appended) -> None:
        lane = self._lanes[batch.partition]
        match answer.status:
            case AppendStatus.OK | AppendStatus.DUP:
                lane.sequence = lane.confirmed = batch.sequence
                lane.confirmed_at = _monotonic()
                lane.waits = None
                lane.deliver(consecutive(answer.detail, len(batch.entries)))
            case AppendStatus.GAP:
                stored = int(answer.detail)
                self._instruments.announce(SequenceGap(self._keys.stream, batch.partition, stored, batch.sequence))
                lane.confirmed = stored  # that is what there is; the batch is sent again
            case AppendStatus.SEALED:
                self._prepared, self._refused = False, True
            case AppendStatus.FULL:
                lane.sequence = batch.sequence  # used up: what is composed next may be another batch
                self._wait_for_room(lane, batch.partition, answer.detail.decode())

    def _wait_for_room(self, lane: Lane, partition: int, processor: str) -> None:
        now = _monotonic()
        if lane.waits is None:
            lane.waits = delays(0.01, 0.5, random.random)
        lane.retry_at = now + next(lane.waits)
        appended = len(lane.ids)
        for sent, number, since in lane.parcels:
            if not sent.done() and not (self._limits.on_full == "wait" and now < since + self._limits.on_full_timeout):
                sent.set_exception(
                    StreamFull(
                        f'Partition {partition} of stream "{self._keys.stream}" is full: '
                        f'{self._limits.partition_size} entries are not yet processed by "{processor}". '
                        f"{appended} of {number} events for it were appended. Start more workers, "
                        'raise partition_size, or use on_full="trim" if the oldest events may be dropped.'
                    )
                )
            appended = 0
