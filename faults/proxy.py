"""A network between a process and the server that can be broken: our own TCP proxy."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Self

__all__ = ["Held", "Proxy"]


class Held:
    """One piece that is kept back on its way to the server, and with it what the client sends on that connection later.

    Attributes:
        caught: there is one.
        released: it may go on; it does so even if its client has gone.
    """

    def __init__(self, match: Callable[[bytes], bool]) -> None:
        """Arguments:
        match: which piece.
        """
        self.match = match
        self.caught = asyncio.Event()
        self.released = asyncio.Event()


class Proxy:
    """Forwards connections to a port of this machine, with the faults that are set.

    Attributes:
        delay: seconds that everything takes, each way.
        trickle: forward one byte at a time.
    """

    def __init__(self, port: int) -> None:
        """Arguments:
        port: where the server listens.
        """
        self.delay = 0.0
        self.trickle = False
        self._target = port
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._up.set()
        self._down.set()
        self._tamper: Callable[[bytes], bytes | None] | None = None
        self._held: Held | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def start(self) -> Self:
        """Listen on a free port of loopback."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    @property
    def url(self) -> str:
        """Where to connect to."""
        host, port = self._server.sockets[0].getsockname()
        return f"redis://{host}:{port}"

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """Hold what is sent, in the given directions, until it is mended; also if the client has gone meanwhile."""
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def mend(self) -> None:
        """Forward again, beginning with what was held."""
        self._up.set()
        self._down.set()
        self.delay, self.trickle, self._tamper = 0.0, False, None

    def hold(self, match: Callable[[bytes], bool]) -> Held:
        """The next piece from the client that matches comes late. Other connections are not concerned."""
        self._held = Held(match)
        return self._held

    def swallow_reply(self) -> None:
        """The next piece that the server sends does not arrive; the connection stays."""
        self._tamper = lambda data: b""

    def reset_in_reply(self) -> None:
        """Of the next piece that the server sends, half arrives; then the connection is reset."""
        self._tamper = lambda data: None

    async def close(self) -> None:
        """End all connections."""
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        for coroutine in (
            self._pump(reader, to_server, self._up, None),
            self._pump(from_server, writer, self._down, writer),
        ):
            task = asyncio.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        tampered: asyncio.StreamWriter | None,
    ) -> None:
        """Forward one direction; ``tampered`` is the client where this is what the server sends."""
        try:
            while data := await reader.read(65536):
                await gate.wait()
                if tampered is None and (held := self._held) is not None and held.match(data):
                    self._held = None
                    held.caught.set()
                    await held.released.wait()
                if self.delay:
                    await asyncio.sleep(self.delay)
                if tampered is not None and self._tamper is not None:
                    tamper, self._tamper = self._tamper, None
                    if tamper(data) is None:
                        writer.write(data[: max(1, len(data) // 2)])
                        with contextlib.suppress(OSError):
                            await writer.drain()
                        writer.transport.abort()
                        return
                    continue
                if self.trickle:
                    for n in range(len(data)):
                        writer.write(data[n : n + 1])
                        await writer.drain()
                        await asyncio.sleep(0)
                else:
                    writer.write(data)
                    await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()
