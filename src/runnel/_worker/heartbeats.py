"""Heartbeats, on a thread with an event loop and connections of their own.

A handler that blocks the worker's event loop must not cost the worker its partitions, so nothing here runs on that
loop. The two sides share a :class:`Holder` per group: the thread writes the lease and calls ``on_beat`` on the worker's
loop, the worker adds releases; both are single operations that the interpreter makes atomic.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

from runnel._core.lease import Lease
from runnel._core.slow import InProgress, SlowEvents
from runnel._redis.link import Endpoint, Link, Listener
from runnel._redis.patience import patiently
from runnel._redis.queries import MOVED, SEALED
from runnel._redis.scripts import Beat, Op, Seat, heartbeat, note_slow
from runnel.errors import RunnelError
from runnel.instruments import Instruments, MemberEvicted, MemberJoined, TaskFailed

__all__ = ["Heartbeats", "Holder"]

MOST_DELAY = 0.25
"""Seconds between two attempts at a heartbeat. Of a server that answers now and then, no answer should be missed."""

SLOW = 1.0
"""Seconds between two looks at what is in progress; what is seen twice is slow."""

LEAVE_TIMEOUT = 2.0
"""Seconds to say good-bye. Whoever cannot is found dead by the others, as after a crash."""


class Holder:
    """One seat, and what its worker and the heartbeat thread tell each other about it.

    Attributes:
        name: of the processor, for announcements.
        seat: the member and its terms.
        lease: how long what is granted from now on may be acted on. The end of one is final: what was granted under it
            must not revive when we are a member again, which may be before the worker's loop has heard of the end.
        on_beat: called on the worker's event loop with every answer, and the lease of what it grants.
        on_moved: called there when somebody has moved positions by hand.
        on_sealed: called there when the stream has another generation.
        in_progress: called on the heartbeat thread: which events are being processed.
        watch: runs on the heartbeat thread, with a connection on which no heartbeat waits.
        draining: the worker wants to hand everything back and leave.
        retired: it has, although the worker goes on: leave now.
        releases: partitions with their tokens that were handed back, until the coordinator has confirmed it.
        floor: new tokens must be above it.
    """

    def __init__(
        self, name: str, seat: Seat, on_beat: Callable[[Beat, Lease], None], on_moved: Callable[[], None] | None = None
    ) -> None:
        self.name = name
        self.seat = seat
        self.lease = Lease(seat.session / 1000)
        self.on_beat = on_beat
        self.on_moved = on_moved
        self.on_sealed: Callable[[], None] | None = None
        self.in_progress: Callable[[], list[InProgress]] | None = None
        self.watch: Callable[[Link], Coroutine[Any, Any, None]] | None = None
        self.draining = self.retired = False
        self.releases: list[tuple[int, int]] = []
        self.floor = 0
        self.joined = self.evicted = False
        self.settled = False
        self.epoch = ""
        self.told = self.seen = 0  # full answers: handed to the worker's loop by the thread, and acted on by the loop
        self.wake = asyncio.Event()

    def lose_lease(self) -> None:
        """The coordinator does not know us any more."""
        self.lease.end()
        self.lease = Lease(self.seat.session / 1000)

    @property
    def channel(self) -> str:
        """Where the coordinator wakes this member."""
        return self.seat.keys.wake(self.seat.member)

    @property
    def op(self) -> Op:
        """What to say with the next heartbeat."""
        if self.draining:
            return Op.DRAIN
        if self.joined:
            return Op.BEAT
        return Op.REJOIN if self.evicted else Op.JOIN


class Heartbeats:
    """The thread. Made and stopped by the worker, which gives it all its seats."""

    def __init__(
        self,
        endpoint: Endpoint,
        holders: Sequence[Holder],
        interval: float,
        instruments: Instruments,
        fail: Callable[[BaseException], None],
    ) -> None:
        """Arguments:
        endpoint: where the coordinator is.
        holders: the seats.
        interval: seconds between heartbeats when nothing happens.
        instruments: where to announce; from this thread.
        fail: called on the worker's event loop when the thread fails, because of an error of ours.
        """
        self._endpoint = endpoint
        self._holders = list(holders)
        self._interval = interval
        self._instruments = instruments
        self._fail = fail
        self._thread = threading.Thread(target=self._run, name="runnel-heartbeats", daemon=True)
        self._started = threading.Event()
        self._ended = asyncio.Event()  # for the worker's loop
        self._tasks: list[asyncio.Task[None]] = []
        self._listeners: set[Listener] = set()
        self._loop: asyncio.AbstractEventLoop
        self._stopping: asyncio.Event
        self._link: Link
        self._notes: Link

    def start(self) -> None:
        """Start, from the worker's event loop."""
        self._worker_loop = asyncio.get_running_loop()
        self._thread.start()
        self._started.wait()

    def nudge(self, holder: Holder) -> None:
        """There is something to tell the coordinator now. From any thread."""
        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(holder.wake.set)

    def add(self, holder: Holder) -> None:
        """One more seat, from the worker's event loop."""
        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(self._begin, [holder])

    def retire(self, holder: Holder) -> None:
        """Leave the group of a seat that holds nothing any more. From the worker's event loop."""
        holder.retired = True
        self.nudge(holder)

    def responds(self, patience: float) -> bool:
        """Whether the thread does something when it is asked to, within ``patience`` seconds. From another thread."""
        answered = threading.Event()
        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(answered.set)
            return answered.wait(patience)
        return False

    async def stop(self) -> None:
        """Leave all groups, and end the thread."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stopping.set)
        await self._ended.wait()  # not by a thread of the executor: all of them may be held by handlers
        self._thread.join()

    # On the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        finally:
            with suppress(RuntimeError):  # the worker's loop is closed: it was aborted
                self._worker_loop.call_soon_threadsafe(self._ended.set)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._link, self._notes = self._endpoint.link(), self._endpoint.link()  # no heartbeat waits for a note
        holders, self._holders = self._holders, []
        self._begin(holders)
        self._started.set()
        await self._stopping.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(RunnelError, TimeoutError):
            async with asyncio.timeout(LEAVE_TIMEOUT):
                for holder in self._holders:
                    if holder.joined:
                        await heartbeat(self._link, holder.seat, Op.LEAVE, releases=tuple(holder.releases))
        await self._link.close()
        await self._notes.close()

    def _begin(self, holders: Sequence[Holder]) -> None:
        """Heartbeat for these seats, with as few subscribed connections as there can be."""
        self._holders += holders
        by_channel = {holder.channel: holder for holder in holders}
        own: dict[str, list[asyncio.Task[None]]] = {channel: [] for channel in by_channel}
        tasks: list[asyncio.Task[None]] = []
        for channels in self._endpoint.together(by_channel):
            listening = asyncio.create_task(self._listen({channel: by_channel[channel] for channel in channels}))
            (tasks if len(channels) > 1 else own[channels[0]]).append(listening)
        for channel, holder in by_channel.items():
            if holder.in_progress is not None:
                own[channel].append(asyncio.create_task(self._note_slow(self._notes, holder)))
            if holder.watch is not None:
                own[channel].append(asyncio.create_task(holder.watch(self._notes)))
            tasks += [*own[channel], asyncio.create_task(self._beat(self._link, holder, own[channel]))]
        for task in tasks:
            task.add_done_callback(self._task_ended)
        self._tasks += tasks

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            with suppress(RuntimeError):  # the worker's loop is closed already
                self._worker_loop.call_soon_threadsafe(self._failed, error)

    async def _beat(self, link: Link, holder: Holder, others: Sequence[asyncio.Task[None]]) -> None:
        """Heartbeat for one seat, for as long as the worker has it.

        1. Tell the coordinator what was released.
        2. Renew the lease, counted from when we began to ask, as the coordinator does, unless the worker's loop has not
           yet seen what we were told before; or, if we were evicted, end it and join again.
        3. Hand the answer to the worker's loop.
        4. See that we are still subscribed where the coordinator is. Sleep until the next is due, or somebody wakes us.
           After an answer that was late, the next is due at once: it counts from now.
        5. The seat is given up while the worker goes on: leave, and end the other tasks that it has for itself.
        """
        while not holder.retired:
            holder.wake.clear()
            releases = tuple(holder.releases)
            op = holder.op
            asked = time.monotonic()
            attempts = 0

            async def send(op: Op = op, releases: Sequence[tuple[int, int]] = releases, asked: float = asked) -> Beat:
                nonlocal attempts
                attempts += 1
                return await heartbeat(
                    link,
                    holder.seat,
                    op,
                    epoch=holder.epoch,
                    settled=holder.settled and not releases,
                    floor=holder.floor,
                    unheard=time.monotonic() - asked if attempts > 1 else 0.0,
                    releases=releases,
                )

            beat = await patiently("heartbeat", send, self._instruments, most_delay=MOST_DELAY)  # 1
            for release in releases:
                holder.releases.remove(release)
            if beat.known:
                # 1. a handler blocks the loop, and a partition is revoked  2. a session later the coordinator takes it
                # as handed back  3. the handler ends, and the loop goes on with another event before it hears of that
                if holder.seen == holder.told:
                    holder.lease.renew(asked)  # 2
                if not holder.joined:
                    holder.joined, holder.evicted = True, False
                    self._instruments.announce(MemberJoined(holder.name, holder.seat.member))
                    self._sealed(holder)  # who is no member is not told
                holder.epoch = beat.epoch
                if beat.full:
                    holder.told += 1
                    holder.settled = beat.waiting == 0 and not beat.revoked
            else:
                holder.lose_lease()
                if holder.joined:
                    holder.evicted = True
                    self._instruments.announce(MemberEvicted(holder.name, holder.seat.member))
                holder.joined = holder.settled = False
            try:
                self._worker_loop.call_soon_threadsafe(self._deliver, holder, beat, holder.lease)  # 3
            except RuntimeError:  # the worker's loop is closed: it was aborted
                self._stopping.set()
                return
            for listener in tuple(self._listeners):
                await listener.leave_if_demoted()  # 4
            if attempts > 1 or (not beat.known and not holder.draining):
                continue
            delay = self._interval if beat.again is None else min(self._interval, beat.again)
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await holder.wake.wait()
        releases = tuple(holder.releases)

        async def leave() -> Beat:
            return await heartbeat(link, holder.seat, Op.LEAVE, releases=releases)

        with suppress(RunnelError):
            await patiently("heartbeat", leave, self._instruments, limit=LEAVE_TIMEOUT)  # 5
        holder.joined = False
        for task in others:
            task.cancel()

    async def _note_slow(self, link: Link, holder: Holder) -> None:
        """Let operators see which events take long. On this thread, because they may be blocking the other."""
        assert holder.in_progress is not None
        slow = SlowEvents()
        while True:
            await asyncio.sleep(SLOW)
            if changes := slow.look(time.monotonic(), holder.in_progress()):
                with suppress(RunnelError):  # who cannot tell now will not be asked
                    await note_slow(link, holder.seat.keys, changes)

    async def _listen(self, by_channel: dict[str, Holder]) -> None:
        """Stay subscribed to channels of ours: it wakes us, and shows the others that we live.

        Arguments:
            by_channel: whose each is; one server has all of them.
        """
        listener = Listener(self._endpoint)
        self._listeners.add(listener)
        try:
            while True:
                await patiently("wake-up channel", lambda: listener.subscribe(tuple(by_channel)), self._instruments)
                for holder in by_channel.values():  # what was published while nobody listened is lost
                    holder.wake.set()
                    self._sealed(holder)
                with suppress(RunnelError):
                    while True:
                        channel, message = await listener.message()
                        holder = by_channel[channel]
                        holder.wake.set()
                        if message == MOVED and holder.on_moved is not None:
                            self._worker_loop.call_soon_threadsafe(holder.on_moved)
                        elif message == SEALED:
                            self._sealed(holder)
        finally:
            self._listeners.discard(listener)
            await listener.close()

    def _sealed(self, holder: Holder) -> None:
        """There is, or may be, another generation of the stream."""
        if holder.on_sealed is not None:
            with suppress(RuntimeError):  # the worker's loop is closed: it was aborted
                self._worker_loop.call_soon_threadsafe(holder.on_sealed)

    # On the worker's loop

    def _deliver(self, holder: Holder, beat: Beat, lease: Lease) -> None:
        try:
            holder.on_beat(beat, lease)
            holder.seen += beat.full
        except Exception as error:
            self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """Better to end than to live without heartbeats, or with an answer half acted on: others take over."""
        self._instruments.announce(TaskFailed("runnel-heartbeats", error))
        self._fail(error)
