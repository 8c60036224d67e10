"""One owned partition: the user's function over its events, from the grant to the release."""

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from structlog.contextvars import bind_contextvars

from runnel._core.backoff import delays
from runnel._core.entry_ids import BEGINNING
from runnel._core.meters import Meter
from runnel._core.partitions import PartitionState, Step, advance
from runnel._redis.scripts import Acquired, Stale
from runnel.constants import ExceptionPolicy
from runnel.errors import DecodeError, ProcessorReturned
from runnel.events import Events
from runnel.feed import Feed
from runnel.instruments import (
    Announcement,
    AttemptFailed,
    LogReplaced,
    LossDetected,
    PartitionFailed,
    PartitionGained,
    PartitionLost,
    PartitionReleased,
    PartitionRewound,
)
from runnel.processors import Processor

__all__ = ["Owner", "PartitionConsumer"]

FINALISERS = 5.0
"""Seconds for middleware to finish after its partition was lost: nothing it does can be committed any more."""

RESTART_DELAY = 1.0
"""Seconds before a function is started again that failed before it had taken an event, so that it does not spin."""


class Owner(Protocol):
    """What a consumer needs of its member."""

    def announce(self, announcement: Announcement) -> None:
        """Tell the instruments."""

    async def acquire(self, feed: Feed, reached: bytes) -> Acquired | Stale:
        """Fence the previous owner and learn the position; ``reached`` is where it is for all that this one knows."""

    async def flush(self, feed: Feed) -> None:
        """Wait until the progress is committed."""

    async def quarantine(self, feed: Feed, event_ids: tuple[str, ...], error: BaseException) -> None:
        """Mark the partition as poisoned, for all to see."""

    def reading(self, feed: Feed, wanted: bool) -> None:
        """Read for this feed, or do not any more."""

    def release(self, feed: Feed, floor: int = 0) -> None:
        """Hand the partition back."""

    def halt(self, processor: str, error: BaseException) -> None:
        """Stop the worker because of this error."""


class PartitionConsumer:
    """Runs a processor's function over one partition under one token.

    Attributes:
        feed: buffer and progress.
        state: where it stands in the life cycle of ``_core/partitions.py``.
        quarantined: an event has failed here; a partition that is parked and is not quarantined is paused.
        processed: how many events were acknowledged.
    """

    def __init__(
        self,
        owner: Owner,
        processor: Processor[Any],
        feed: Feed,
        *,
        quarantined: bool,
        paused: bool,
        after: frozenset[asyncio.Task[None]],
        meter: Meter | None,
    ) -> None:
        """Arguments:
        owner: the member.
        processor: what to run.
        feed: not yet begun.
        quarantined: the partition is marked as poisoned: hold it, and do not process it.
        paused: somebody has paused the processor: the same.
        after: the consumers that had this partition before in this worker and have not ended yet.
        meter: measures the processing, if it is to be measured.
        """
        self._owner = owner
        self._processor = processor
        self.feed = feed
        self.state = PartitionState.GRANTED
        self.quarantined = quarantined
        self._parked = quarantined or paused
        self._after = after
        self._events = Events(
            processor.name,
            processor.stream.name,
            feed,
            processor.stream.codec,
            processor.middleware,
            commit_each=processor.commit == "each",
            meter=meter,
        )
        self._drain_wanted = asyncio.Event()
        self._woken = asyncio.Event()  # not parked any more, by a drain or a resume
        self._marked_at = 0.0
        self._calling = False
        self._drained_since = 0.0
        self._grace: asyncio.TimerHandle | None = None
        self._given_up = False
        self._rewinding = self._told = False
        self._started_at = 0
        self._processed_before = 0
        self._waits: Iterator[float] = iter(())
        self.task = asyncio.create_task(self._run(), name=f"runnel-{processor.name}-{feed.partition}")

    @property
    def in_flight(self) -> int:
        """How many events the function is working on."""
        return len(self.held) if self._calling else 0

    @property
    def held(self) -> tuple[str, ...]:
        """Their ids."""
        return self._events.held

    @property
    def in_progress(self) -> str:
        """The id of the first event that the function is processing; empty if it is not."""
        held = self._events.held if self._calling else ()
        return held[0] if held else ""

    @property
    def at_work(self) -> bool:
        """Whether it should make progress, if there are events. From any thread."""
        return self.state is PartitionState.RUNNING or (self.state is PartitionState.GRANTED and not self._parked)

    @property
    def doing(self) -> str:
        """What it is doing, in a phrase, for who wonders why it makes no progress. From any thread."""
        feed = self.feed
        if self.state is PartitionState.GRANTED:
            before = any(not task.done() for task in self._after)
            return "the function that has lost it does not end" if before else "it is not acquired"
        if event := self.in_progress:
            return f"event {event} is in progress"
        if held := self._events.held:
            return f"event {held[0]} waits to be tried again"
        if feed.stale:
            return "the position is taken from Redis again"
        if feed.done != feed.committed:
            return "what is processed is not committed"
        if feed.suspended:
            return "the lease is not renewed: the coordinator does not answer"
        return "events that were read are not handed out" if feed.entries else "events are not read"

    @property
    def _abandoned(self) -> bool:
        """Whether the function was cancelled by us: what it holds is somebody else's, or will be."""
        return self._given_up or self.state is PartitionState.LOST

    @property
    def processed(self) -> int:
        """How many events were acknowledged under this token."""
        return self._processed_before + self.feed.processed - self._started_at

    def measure(self) -> None:
        """Count in the meter what was processed and is not counted yet."""
        self._events.measure()

    @property
    def committed(self) -> bytes:
        """The position that Redis holds for all we know; at the beginning where it has told us otherwise."""
        return BEGINNING if self._told else self.feed.committed

    # What the member says

    def drain(self) -> None:
        """Finish the event in progress, commit, and release; give it up if it takes longer than the grace period."""
        if self.state in (PartitionState.DRAINING, PartitionState.RELEASED, PartitionState.LOST):
            return
        self.state = advance(self.state, Step.DRAIN)
        self._drained_since = time.monotonic()
        self.feed.end()
        self._drain_wanted.set()
        self._woken.set()
        self._limit(self._give_up)

    def lose(self, reason: str) -> None:
        """Stop at once: somebody else may own the partition already."""
        if self.state in (PartitionState.RELEASED, PartitionState.LOST):
            return
        self.state = advance(self.state, Step.LOSE)
        self.feed.stale = True
        self.feed.end()
        self._owner.reading(self.feed, False)
        self._owner.announce(PartitionLost(self._processor.name, self.feed.partition, self.feed.token, reason))
        self.task.cancel()

    def rewind(self, reason: str, expected: bytes, stored: bytes) -> None:
        """Redis holds another position: finish the event in progress without a commit, and go on from there."""
        if self.state in (PartitionState.RELEASED, PartitionState.LOST):
            return
        if reason != "replaced" and not self._told:  # else acquiring it again shows whether anything was lost
            self._told = True
            self._owner.announce(
                PartitionRewound(self._processor.name, self.feed.partition, reason, expected.decode(), stored.decode())
            )
        if self._rewinding or self.state is not PartitionState.RUNNING:
            return
        self._rewinding = True
        self.feed.stale = True
        self.feed.end()
        self._limit(self._insist)

    def park(self, *, quarantined: bool) -> bool:
        """Finish the event in progress, commit, and hand out nothing more until :meth:`resume`. True if that is new."""
        self.quarantined = quarantined
        if self.state is PartitionState.GRANTED:
            self._parked = True
        if self.state is not PartitionState.RUNNING:
            return False
        self.state = advance(self.state, Step.PARK)
        self._woken.clear()
        self.feed.end()
        self._limit(self._insist)
        self._owner.reading(self.feed, False)
        return True

    def marked_after(self, asked: float) -> bool:
        """Whether we have marked the partition, or are about to, since the coordinator was asked (monotonic time)."""
        return asked <= self._marked_at

    def resume(self) -> bool:
        """Nothing keeps the partition from being processed any more: go on. True if that is new.

        What is read again is the position: a failed event is tried again, one that was skipped is not.
        """
        self._parked = self.quarantined = False  # where it is not yet acquired: as if it had never been parked
        if self.state is not PartitionState.PARKED:
            return False
        self.state = advance(self.state, Step.RESUME)
        self._rewinding = True
        self._woken.set()
        return True

    # The life of a partition

    async def _run(self) -> None:
        """From the grant to the release.

        1. Wait until the predecessors in this process have ended: two functions must not run on one partition.
        2. Acquire: fence the previous owner, learn the position.
        3. Process until drained, parked or set back, and commit what was finished; unless drained, from 2 again.
        4. Release.
        """
        # What the user's code logs by structlog says where it comes from.
        bind_contextvars(processor=self._processor.name, partition=self.feed.partition)
        try:
            if self._after:
                await asyncio.wait(self._after)  # 1
            while await self._acquire():  # 2
                await self._process()  # 3
                if not self._rewinding:
                    break
                self._rewinding = False
            self._owner.reading(self.feed, False)
        except asyncio.CancelledError:
            if self.state is PartitionState.LOST:
                return  # there is nothing more to do; what we held is somebody else's
            if not self._given_up:
                raise  # by the function itself, or the event loop is shut down around us: the member sees to it
        finally:
            if self._grace is not None:
                self._grace.cancel()
        if self.state is PartitionState.DRAINING:
            self.state = advance(self.state, Step.RELEASE)
            self._owner.release(self.feed)  # 4
            self._owner.announce(
                PartitionReleased(
                    self._processor.name,
                    self.feed.partition,
                    self.feed.token,
                    time.monotonic() - self._drained_since,
                )
            )

    async def _acquire(self) -> bool:
        """Take possession. False if there is nothing to process: drained before it began, or lost, or refused.

        No commit of ours may reach Redis while or after the position is read: it would move it behind our back.
        """
        if self.state in (PartitionState.DRAINING, PartitionState.LOST):  # lost, and the function has swallowed that
            return False
        feed, name = self.feed, self._processor.name
        feed.stale = True
        await self._owner.flush(feed)
        acquired = await self._owner.acquire(feed, BEGINNING if self._told else feed.done)
        if isinstance(acquired, Stale):
            self.lose(f"a higher token ({acquired.token}) was given out before")
            self._owner.release(feed, floor=acquired.token)
            return False
        if acquired.rolled_back:
            rolled_back, position = acquired.rolled_back.decode(), acquired.offset.decode()
            self._owner.announce(PartitionRewound(name, feed.partition, "rollback", rolled_back, position))
        if acquired.lost:
            self._owner.announce(LossDetected(name, feed.partition, acquired.lost))
        if acquired.replaced:
            self._owner.announce(LogReplaced(name, feed.partition, acquired.offset.decode()))
        self._told = self._rewinding = False  # also for who was parked and resumed meanwhile: this is the position
        self._given_up = False
        if self._grace is not None and not self._drain_wanted.is_set():
            self._grace.cancel()
        self._processed_before = self.processed
        feed.begin(acquired.offset, acquired.count)
        if feed.probed:  # meanwhile
            feed.on_done(feed)
        self._started_at = acquired.count
        if self._drain_wanted.is_set():  # while we waited for the answer
            feed.end()
            return True
        if self.state is PartitionState.GRANTED:
            self.state = advance(self.state, Step.PARK if self._parked else Step.ACQUIRE)
            position = acquired.offset.decode()
            self._owner.announce(PartitionGained(name, feed.partition, feed.token, position, self.quarantined))
        if self.state is PartitionState.PARKED:
            feed.end()
        else:
            self._owner.reading(feed, True)
        return True

    async def _process(self) -> None:
        """Run the function, again and again, until nothing more is handed out.

        1. Run it.
        2. Finish all middleware, so that it has ended before anything is acknowledged or started again.
        3. Acknowledge what it took; or wait and try it again; or follow the exception policy.
        4. Commit: who resumes or takes over begins behind what was finished.
        5. If it is parked, wait until it is not.
        """
        events = self._events
        while not self.feed.ended:
            events.restart()
            self._calling = True
            try:
                failure = await self._call()  # 1, 2
            finally:
                self._calling = False
            if self.state is PartitionState.LOST or (self._given_up and self.state is PartitionState.DRAINING):
                return
            if self._given_up:  # for not ending without events: we keep the partition
                break
            if failure is None and not events.asked and not self.feed.ended:
                failure = ProcessorReturned(
                    f'The processor "{self._processor.name}" ended without asking for an event. It must iterate over '
                    "its events: async for event in events: ..."
                )
            if failure is None:
                events.acknowledge()  # 3
            elif self._may_retry(failure):
                await self._back_off(failure)  # 3
            else:
                await self._follow_policy(failure)  # 3
        await self._owner.flush(self.feed)  # 4
        while self.state is PartitionState.PARKED:
            await self._woken.wait()  # 5

    async def _call(self) -> BaseException | None:
        """Run the function and finish the middleware. Returns what it raised."""
        failure: BaseException | None = None
        try:
            await self._processor.function(self._events)
        except asyncio.CancelledError as error:
            if not self._abandoned and self.task.cancelling():
                raise
            failure = error  # raised by the user's own code, unless it is abandoned
        except BaseException as error:  # a panic of Rust code, say, or a group with one, is no Exception
            if isinstance(error, KeyboardInterrupt | SystemExit) or not self.task.get_loop().is_running():
                raise  # the process is to end, or does already
            # The end of the events, in code that calls anext() itself, is no failure. None is in progress then.
            at_end = self.feed.ended and not self._events.held
            failure = None if isinstance(error, StopAsyncIteration) and at_end else error
        if self._abandoned:  # whatever the function has made of its cancellation, its event has not failed
            self._events.abandoned = True
            self.task.uncancel()
            await self._finish_middleware(FINALISERS)
            return None
        self._events.failure = failure
        self._events.retrying = failure is not None and self._may_retry(failure)
        return await self._finish_middleware(None) or failure

    async def _finish_middleware(self, seconds: float | None) -> BaseException | None:
        try:
            async with asyncio.timeout(seconds):
                await self._events.close()
        except asyncio.CancelledError as error:
            if self._given_up and self.state is not PartitionState.LOST:
                self.task.uncancel()
                return None
            if self.task.cancelling():
                raise
            return error  # raised by a finaliser itself
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            return error
        return None

    def _may_retry(self, failure: BaseException) -> bool:
        """Whether there is another attempt. Bytes that cannot be decoded now cannot be decoded later."""
        hopeless = isinstance(failure, (DecodeError, ProcessorReturned))
        return not hopeless and self._events.attempt <= self._processor.retries

    async def _back_off(self, failure: BaseException) -> None:
        """Wait, and hand out again first what has failed. A drain ends the wait, and nothing is acknowledged."""
        events, chosen = self._events, self._processor
        if events.attempt == 1:
            self._waits = delays(min(chosen.backoff, chosen.backoff_max), chosen.backoff_max, random.random)
        seconds = next(self._waits)
        self._owner.announce(
            AttemptFailed(
                chosen.name, self.feed.partition, events.held, events.attempt, chosen.retries, seconds, failure
            )
        )
        events.count_failure()
        await self.feed.pause(seconds)
        if not self.feed.ended:
            events.put_back()

    async def _follow_policy(self, failure: BaseException) -> None:
        """The function failed with what it holds unacknowledged.

        HALT: the worker stops; the partition waits for that. QUARANTINE: the partition is marked, and parked until the
        mark is gone. IGNORE: what failed is acknowledged, and the function is started again; but as HALT, if middleware
        has failed while it finished because of that: what it was to keep, such as a dead letter, is not kept.
        """
        name, policy, held = self._processor.name, self._processor.exception_policy, self._events.held
        first = self._events.failure  # of the function, of which middleware was told
        if isinstance(failure, ProcessorReturned):
            policy = ExceptionPolicy.HALT
        elif policy is ExceptionPolicy.IGNORE and held and first is not None and first is not failure:
            policy = ExceptionPolicy.HALT
            failure.add_note(
                f"Middleware raised this while it finished because of the function's {type(first).__name__}. "
                "IGNORE would lose what it was to keep of the event, so the worker halts."
            )
        attempt = self._events.attempt
        self._owner.announce(PartitionFailed(name, self.feed.partition, held, policy.value, failure, attempt))
        self._events.forget_failures()
        if policy is ExceptionPolicy.IGNORE:
            if held:
                self._events.acknowledge()
            else:
                await self.feed.pause(RESTART_DELAY)
            return
        self.feed.end()
        self._owner.reading(self.feed, False)
        if self._rewinding:
            return  # Redis says that this event was not the next one; the failure will come again if it matters
        if policy is ExceptionPolicy.HALT:
            self._owner.halt(name, failure)
            await self._drain_wanted.wait()
        elif self.state in (PartitionState.RUNNING, PartitionState.PARKED):
            self.quarantined = True
            self._marked_at = math.inf  # an answer that does not know of the mark must not end it
            if self.state is PartitionState.RUNNING:
                self.state = advance(self.state, Step.PARK)
            self._woken.clear()
            await self._owner.flush(self.feed)
            await self._owner.quarantine(self.feed, held, failure)
            self._marked_at = time.monotonic()

    def _limit(self, then: Callable[[], None]) -> None:
        """Let the function, which is handed out nothing more, end within the grace period."""
        if self._grace is not None:
            self._grace.cancel()
        self._grace = asyncio.get_running_loop().call_later(self._processor.grace_period, then)

    def _insist(self) -> None:
        """It may take its time to finish an event where we keep the partition, but not to end without one."""
        if self._calling and self._events.held:
            self._limit(self._insist)
        elif self._calling:
            self._give_up()

    def _give_up(self) -> None:
        self._given_up = True
        self.task.cancel()
