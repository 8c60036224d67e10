"""The worker: one process that runs processors and background tasks until it is told to stop."""

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from runnel._core.generations import Generation, Generations
from runnel._redis.queries import server_version
from runnel._worker.background import Background
from runnel._worker.heartbeats import Heartbeats
from runnel._worker.member import Member
from runnel.app import App
from runnel.errors import UnknownProcessor, did_you_mean
from runnel.instruments import TaskFailed, WorkerStarted, WorkerStopped, WorkerStopping
from runnel.processors import Processor

__all__ = ["Worker", "select_processors"]

ABORT_TIMEOUT = 2.0
"""Seconds for what is cancelled by an abort to end."""


def select_processors(app: App, names: Sequence[str] | None) -> list[Processor[Any]]:
    """The processors of an app by name; all of them for ``None``.

    Raises:
        UnknownProcessor: the app has none of that name.
    """
    if names is None:
        return list(app.processors.values())
    for name in names:
        if name not in app.processors:
            known = ", ".join(app.processors) or "none"
            raise UnknownProcessor(
                f'The app "{app.name}" has no processor "{name}".{did_you_mean(name, app.processors)} It has: {known}.'
            )
    return [app.processors[name] for name in dict.fromkeys(names)]


class Worker:
    """Runs an app.

    Attributes:
        name: unique: host, process id, and a few random letters.
        processors: what it runs.
        server: name and version of the Redis server, once it is known.
        failure: the error that halted it, if one did.
        members: its seats, one per processor, from when it runs.
    """

    def __init__(
        self,
        app: App,
        processors: Sequence[str] | None = None,
        *,
        grace_period: float | None = None,
        measured: bool = False,
    ) -> None:
        """Arguments:
        app: what to run.
        processors: names; ``None`` for all. Background tasks run in either case.
        grace_period: in place of that of the processors, in seconds.
        measured: whether to measure how long events take.

        Raises:
            UnknownProcessor: the app has none of that name.
        """
        self.app = app
        self.name = f"{socket.gethostname().replace('|', '_')}-{os.getpid()}-{secrets.token_hex(3)}"
        self.processors = select_processors(app, processors)
        if grace_period is not None:
            self.processors = [replace(processor, grace_period=grace_period) for processor in self.processors]
        if app.tracing is not None:  # nearest to the source, so that all other middleware runs within the span
            spans = app.tracing
            self.processors = [replace(each, middleware=(spans, *each.middleware)) for each in self.processors]
        self.server = ""
        self.failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._reason = ""
        self._aborted = asyncio.Event()
        self.members: list[Member] = []
        self._measured = measured
        self._heartbeats: Heartbeats | None = None
        self._generations: dict[str, Generations] = {}

    @property
    def stopping(self) -> bool:
        """Whether it has been told to stop."""
        return self._stop.is_set()

    @property
    def aborted(self) -> bool:
        """Whether it was told not to wait for anything."""
        return self._aborted.is_set()

    def responds(self, patience: float) -> bool:
        """Whether the thread that keeps the partitions alive does its work. From another thread.

        It does not matter whether Redis answers, or whether a handler blocks the event loop for the moment.

        Arguments:
            patience: seconds to wait for an answer.
        """
        return self._heartbeats is None or self._heartbeats.responds(patience)

    @property
    def ready(self) -> bool:
        """Whether it has joined all groups, and Redis has answered lately: it may act on what it was granted."""
        now = time.monotonic()
        seats = [member.holder for member in self.members]
        joined = len(seats) == len(self.processors) and all(seat.joined for seat in seats)
        return joined and not self.stopping and all(now < seat.lease.deadline for seat in seats)

    async def prepare(self) -> None:
        """Reach Redis, and compare the stored streams with ours; before anything starts.

        Raises:
            RedisUnavailable: Redis cannot be reached.
            MetadataMismatch: a stream is stored with other properties.
        """
        link = self.app.endpoint.link()
        try:
            self.server = await server_version(link)
            for stream in {processor.stream.name: processor.stream for processor in self.processors}.values():
                self._generations[stream.name] = await stream.declare(link)
            for sink in {sink.name: sink for processor in self.processors for sink in processor.sinks}.values():
                if sink.outlet is self.app:  # that of another app may be on another server
                    await sink.declare(link)
        finally:
            await link.close()

    async def run(self) -> int:
        """Run until stopped.

        1. Join: a heartbeat thread for all seats; members act on its answers.
        2. Wait until told to stop.
        3. Drain: no new events; each partition finishes its event, commits, and is released as soon as it has.
        4. Leave the groups, and stop the heartbeats: not before, or unfinished partitions would be taken from us.
        5. Send what is still to be sent; disconnect.

        Returns:
            The exit status: 0, 1 if a processor halted or the worker failed, 130 if aborted.

        Raises:
            RedisUnavailable: Redis cannot be reached at the start. Later on it is waited for.
            MetadataMismatch: a stream is stored with other properties.
        """
        if not self.server:
            await self.prepare()
        app, endpoint = self.app, self.app.endpoint
        self.members = [self._member(processor, self._begins_with(processor)) for processor in self.processors]
        background = Background(self.name, app.tasks, endpoint, app.settings, app.instruments)
        holders = [member.holder for member in self.members]
        if background.holder is not None:
            holders.append(background.holder)
        heartbeats = Heartbeats(endpoint, holders, app.settings.heartbeat_interval, app.instruments, self._fail)
        heartbeats.start()  # 1
        self._heartbeats = heartbeats
        for member in self.members:
            member.start(heartbeats)
        successions = [asyncio.create_task(self._succeed(member)) for member in self.members]
        for succession in successions:
            succession.add_done_callback(self._succession_ended)
        background.start(heartbeats)
        app.instruments.announce(WorkerStarted(self.name, tuple(p.name for p in self.processors)))

        await self._stop.wait()  # 2
        for succession in successions:
            succession.cancel()
        await asyncio.gather(*successions, return_exceptions=True)
        stopping_since = time.monotonic()
        in_flight = sum(member.in_flight for member in self.members)
        app.instruments.announce(WorkerStopping(self.name, self._reason, in_flight))
        drain = asyncio.create_task(self._drain(background))  # 3
        abort = asyncio.create_task(self._aborted.wait())
        await asyncio.wait([drain, abort], return_when=asyncio.FIRST_COMPLETED)
        if self._aborted.is_set():
            background.abort()
            for member in self.members:
                member.abort()
            await asyncio.wait([drain], timeout=ABORT_TIMEOUT)
            drain.cancel()  # what swallows its cancellation is left behind; or it has ended
        await asyncio.gather(drain, return_exceptions=self._aborted.is_set())
        self._heartbeats = None
        await heartbeats.stop()  # 4
        for member in self.members:
            await member.close()
        if not self._aborted.is_set():
            closing = asyncio.create_task(app.aclose())  # 5
            await asyncio.wait([closing, abort], return_when=asyncio.FIRST_COMPLETED)
            closing.cancel()  # aborted meanwhile, or it has ended
            await asyncio.gather(closing, return_exceptions=self._aborted.is_set())
        abort.cancel()
        app.instruments.announce(
            WorkerStopped(
                self.name,
                sum(member.processed for member in self.members),
                sum(member.released for member in self.members),
                time.monotonic() - stopping_since,
            )
        )
        if self.failure is not None:
            return 1
        return 130 if self._aborted.is_set() else 0

    def _begins_with(self, processor: Processor[Any]) -> Generation:
        stream = processor.stream
        return self._generations[stream.name].of_processor(stream.keys.group_name(processor.name))

    def _member(self, processor: Processor[Any], generation: Generation) -> Member:
        app = self.app
        return Member(
            *(self.name, processor, generation, app.endpoint, app.settings, app.instruments),
            self._halt,
            self._fail,
            measured=self._measured,
        )

    async def _succeed(self, member: Member) -> None:
        """Move a seat from one generation of its stream to the next, until that is moved to another server.

        1. Wait until everything in this one is processed, by whomever.
        2. Hand back the partitions, which are empty, and leave their group.
        3. Join that of the next one.
        """
        while True:
            generation = await member.successor()  # 1
            await member.retire()  # 2
            if generation is None:
                return
            successor = self._member(member.processor, generation)
            successor.take_over(member)
            self.members[self.members.index(member)] = successor
            assert self._heartbeats is not None
            self._heartbeats.add(successor.holder)  # 3
            successor.start(self._heartbeats)
            member = successor

    def _succession_ended(self, task: asyncio.Task[None]) -> None:
        """Better to end than to stay behind: others take over."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self.app.instruments.announce(TaskFailed("runnel-succession", error))
            self._fail(error)

    async def _drain(self, background: Background) -> None:
        await asyncio.gather(background.stop(), *(member.drain() for member in self.members))

    def stop(self, reason: str) -> None:
        """Drain and end. A second call changes nothing."""
        if not self._stop.is_set():
            self._reason = reason
            self._stop.set()

    def abort(self) -> None:
        """End without waiting for events in progress; they will be processed again."""
        self.stop("aborted")
        self._aborted.set()

    def _halt(self, processor: str, error: BaseException) -> None:
        if self.failure is None:
            self.failure = error
        self.stop(f'the processor "{processor}" halted')

    def _fail(self, error: BaseException) -> None:
        """A part of ours has failed: nothing can be trusted to be finished in good order."""
        if self.failure is None:
            self.failure = error
        self.abort()
