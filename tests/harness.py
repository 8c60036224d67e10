"""What tests of the public interface share: a worker for a block, conditions to wait for, what was announced."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from runnel import App
from runnel._redis import queries
from runnel._redis.link import Endpoint, Line, Link
from runnel._worker import Worker
from runnel.errors import RedisUnavailable
from runnel.instruments import Announcement
from runnel.streams import Stream

A = TypeVar("A", bound=Announcement)

STOP = 20.0
"""Seconds within which a worker must have ended; far above what it takes, so that a slow machine does not fail."""


async def eventually(condition: Callable[[], Any], timeout: float = 10.0) -> Any:
    """Wait until ``condition``, a function or a coroutine function, is true; returns what it returned."""
    deadline = asyncio.get_running_loop().time() + timeout
    while True:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {timeout} s: {_source(condition)}")
        await asyncio.sleep(0.005)


def _source(condition: Callable[[], Any]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except (OSError, TypeError):
        return repr(condition)


@asynccontextmanager
async def running(app: App, processors: Sequence[str] | None = None) -> AsyncIterator[Worker]:
    """A worker on this event loop. At the end it is told to stop; an error that halted it is raised here."""
    worker = Worker(app, processors)
    task = asyncio.create_task(worker.run(), name="worker")
    try:
        yield worker
    finally:
        worker.stop("test")
        async with asyncio.timeout(STOP):
            await task
    if worker.failure is not None:
        raise worker.failure


async def run_to_end(app: App, processors: Sequence[str] | None = None) -> tuple[int, Worker]:
    """Run a worker that is expected to end by itself; returns its exit status as well."""
    worker = Worker(app, processors)
    async with asyncio.timeout(STOP):
        return await worker.run(), worker


class Recorder:
    """Every announcement of an app, in order."""

    def __init__(self, app: App) -> None:
        self.seen: list[Announcement] = []
        app.instruments.subscribe(self.seen.append)

    def of(self, kind: type[A]) -> list[A]:
        """Those of one kind."""
        return [announcement for announcement in self.seen if isinstance(announcement, kind)]


class Inspector:
    """Looks into Redis, past the app."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._link = app.endpoint.link()

    @property
    def link(self) -> Link:
        """For commands of a test's own."""
        return self._link

    async def position(self, stream: Stream[Any], processor: str, partition: int) -> str | None:
        """The id of the last event whose processing is committed, ``0-0`` for none, ``None`` if never acquired."""
        found = await queries.position(self._link, stream.keys, processor, partition)
        return None if found is None else found[0].decode()

    async def count(self, stream: Stream[Any], processor: str) -> int:
        """How many events are committed in all partitions."""
        found = [
            await queries.position(self._link, stream.keys, processor, partition)
            for partition in range(stream.partition_count)
        ]
        return sum(item[1] for item in found if item is not None)

    async def entries(self, stream: Stream[Any], partition: int) -> list[tuple[str, dict[bytes, bytes]]]:
        """The log of a partition: ids and fields, headers included."""
        log = stream.keys.log(partition)
        raw = await self._link.at(log).call("XRANGE", log, "-", "+")
        return [(entry_id.decode(), dict(zip(flat[::2], flat[1::2], strict=True))) for entry_id, flat in raw]

    async def add(self, stream: Stream[Any], partition: int, *fields: str | bytes) -> str:
        """Append an entry as some other program would; returns its id."""
        log = stream.keys.log(partition)
        return (await self._link.at(log).call("XADD", log, "*", *fields)).decode()


@asynccontextmanager
async def inspecting(app: App) -> AsyncIterator[Inspector]:
    """An :class:`Inspector` of the server of an app."""
    inspector = Inspector(app)
    try:
        yield inspector
    finally:
        await inspector.link.close()


class CutOff:
    """A link that carries so many commands and no more: whoever uses it is cut off in the middle.

    Arguments:
        link: the one that carries them; closed by whoever made this.
        left: a list with the one number of commands that are left; several links may share it.
    """

    def __init__(self, link: Line, left: list[int]) -> None:
        self._link = link
        self._left = left

    @property
    def endpoint(self) -> Endpoint:
        """Of the link."""
        assert isinstance(self._link, Link)
        return self._link.endpoint

    def at(self, key: str) -> "CutOff":
        """Its line to whoever has a key."""
        assert isinstance(self._link, Link)
        return CutOff(self._link.at(key), self._left)

    async def call(self, *command: Any, **options: Any) -> Any:
        """Send a command, if one is left."""
        if self._left[0] == 0:
            raise RedisUnavailable("cut off")
        self._left[0] -= 1
        return await self._link.call(*command, **options)


@asynccontextmanager
async def cut_off(endpoint: Endpoint, left: list[int]) -> AsyncIterator[CutOff]:
    """A :class:`CutOff` for a block."""
    link = endpoint.link()
    try:
        yield CutOff(link, left)
    finally:
        await link.close()
