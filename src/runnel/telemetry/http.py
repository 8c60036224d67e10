"""Health and metrics over HTTP, on a thread of its own: a handler that blocks the event loop is slow, not dead."""

import asyncio
import socket
import threading
from contextlib import closing, suppress

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from runnel._worker import Worker
from runnel.errors import ConfigurationError
from runnel.telemetry.exposition import CONTENT_TYPE, Exposition
from runnel.telemetry.figures import Figures
from runnel.telemetry.lag import Lags

__all__ = ["HealthServer"]

PATIENCE = 2.0
"""Seconds that the heartbeat thread may take to show that it lives. It does nothing that takes a millisecond."""


class _Server(uvicorn.Server):
    """Waits to be told to end, instead of looking ten times a second.

    Whenever this thread wakes, it takes the interpreter's lock from the processors.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ended = asyncio.Event()

    async def main_loop(self) -> None:
        """Until :attr:`ended` is set."""
        await self.on_tick(0)
        await self.ended.wait()


class HealthServer:
    """Serves ``/metrics``, ``/livez`` and ``/readyz`` for a worker.

    Attributes:
        url: where.
    """

    def __init__(self, worker: Worker, host: str, port: int) -> None:
        """Listens from now on; answers from :meth:`start` on.

        Arguments:
            worker: not yet running, and measured.
            host: a name or address of this machine.
            port: its port; 0 for a free one.

        Raises:
            ConfigurationError: the port is taken, or the address is not of this machine.
        """
        self._worker = worker
        self._lags = Lags(worker)
        figures = Figures(worker, self._lags)
        worker.app.instruments.subscribe(figures.hear)
        self._exposition = Exposition(figures)
        self._socket = _listen(host, port)
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}"
        routes = [
            Route("/metrics", self._metrics),
            Route("/livez", self._livez),
            Route("/readyz", self._readyz),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes),
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,  # it would have to be looked after
            loop="asyncio",
            ws="none",
            timeout_graceful_shutdown=1,
        )
        config.load()  # its imports now, and not while events are processed
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._run, name="runnel-http", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread."""
        self._server.should_exit = True
        with suppress(RuntimeError):  # it has ended by itself
            self._loop.call_soon_threadsafe(self._server.ended.set)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        with closing(self._socket), asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        looking = asyncio.create_task(self._lags.run(), name="runnel-lags")
        await self._server.serve(sockets=[self._socket])
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    async def _metrics(self, _: Request) -> Response:
        text = await asyncio.to_thread(self._exposition.text)
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def _livez(self, _: Request) -> Response:
        """Whether this process does its work at all. Restarting it would not help against anything else."""
        lives = await asyncio.to_thread(self._worker.responds, PATIENCE)
        return PlainTextResponse(
            "alive\n" if lives else "the heartbeat thread does not respond\n", 200 if lives else 503
        )

    async def _readyz(self, _: Request) -> Response:
        """Whether it takes part: it has joined its groups, and Redis has answered lately."""
        if self._worker.ready:
            return PlainTextResponse("ready\n")
        return PlainTextResponse(
            "stopping\n" if self._worker.stopping else "not joined, or no answer from Redis\n", 503
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(16)
        except BaseException:
            listening.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"Cannot listen on {host}:{port} for --http ({error.strerror}). Choose another address, such as "
            f"--http {port + 1}."
        ) from None
    return listening
