"""One connection, one command at a time.

Owns connecting, time-outs and the translation of errors. A command that fails or is cancelled in the middle closes its
connection, because what comes next on it would be the answer to something else. Nothing is retried here: who calls
knows whether its operation may be repeated.
"""

import asyncio
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import hiredis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, parse_url

from runnel.errors import ConfigurationError, RedisError, RedisUnavailable

__all__ = ["REPLY_TIMEOUT", "Endpoint", "Link", "Listener"]

CONNECT_TIMEOUT = 5.0
"""Seconds. A server on a working network answers a connection in milliseconds."""

REPLY_TIMEOUT = 5.0
"""Seconds in which nothing moves. Far above any script of ours; but no longer, since whoever waits for a reply that was
lost on its way stands still meanwhile."""

_KEEPALIVE = {
    getattr(socket, name): seconds
    for name, seconds in (("TCP_KEEPIDLE", 10), ("TCP_KEEPALIVE", 10), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}
"""A peer that is gone without a word is noticed after some 20 s, also where we only listen; by default after two hours.
(TCP_KEEPALIVE is the first of these on macOS.)"""

_PASSING = (
    "LOADING",
    "READONLY",
    "NOREPLICAS",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "MASTERDOWN",
    "OOM",
    "MISCONF",
    "BUSY ",
)
"""What an error begins with that goes away by waiting: a restart, a fail-over, full memory, a full disk."""


class Endpoint:
    """Where the server is.

    Raises:
        ConfigurationError: ``url`` is not a URL that redis-py understands.
    """

    def __init__(self, url: str) -> None:
        """Arguments:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user, password and database as in redis-py.
        """
        self.safe_url = masked(url)
        try:
            self._options: dict[str, Any] = dict(parse_url(url))
        except ValueError as error:
            raise ConfigurationError(
                f'"{self.safe_url}" is not a Redis URL ({error}). For example: redis://127.0.0.1:6379'
            ) from None
        self._connection_class: type[AbstractConnection] = self._options.pop("connection_class", Connection)
        if issubclass(self._connection_class, Connection):
            self._options.setdefault("socket_keepalive", True)
            self._options.setdefault("socket_keepalive_options", _KEEPALIVE)
        # Our own time-outs, one per command, see Link.call. redis-py's would start a task for every write.
        self._options.update(socket_timeout=None, socket_connect_timeout=CONNECT_TIMEOUT, protocol=2, retry=None)

    def connection(self) -> AbstractConnection:
        """A new connection, not yet connected."""
        return self._connection_class(**self._options)

    def unreachable(self, error: BaseException) -> RedisUnavailable:
        """What to raise when nothing could be sent, or no answer came."""
        detail = str(error).strip() or type(error).__name__
        if isinstance(error, ConnectionRefusedError) or isinstance(error.__context__, ConnectionRefusedError):
            detail = "connection refused"
        elif isinstance(error, exceptions.AuthenticationError):
            return RedisUnavailable(f"{self.safe_url} refused the user or password ({detail}).")
        return RedisUnavailable(
            f"Cannot reach {self.safe_url} ({detail.rstrip('.')}).",
            "Start a server with `runnel server`, or name another one: --redis-url, redis_url in App(...), or "
            "RUNNEL_REDIS_URL where App(...) has none.",
        )


def masked(url: str) -> str:
    """``url`` with its password replaced, for logs and messages."""
    try:
        parts = urlsplit(url)
        if parts.password is None and "password=" not in parts.query:
            return url
        host = parts.netloc.rpartition("@")[2]
        user = f"{parts.username or ''}:***@" if parts.password is not None else ""
        query = "&".join("password=***" if q.startswith("password=") else q for q in parts.query.split("&"))
        return urlunsplit((parts.scheme, user + host, parts.path, query, ""))
    except ValueError:
        return "the given URL"


_PARTIAL = object()
"""What the parser returns while a reply is not complete."""


class _Exchange(asyncio.Protocol):
    """One command and its reply, on a connection that redis-py has made and logged in.

    redis-py's own way, a stream reader and a packer in Python, costs 0.5 µs of CPU per argument of a command, a third
    of the client's time in ``send`` of 1,000 records, and stops and continues reading every 64 kB of a large reply.
    hiredis packs and parses in C, and the reply is handed over in the callback in which it arrived.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        """Take over the connection's transport; from here on redis-py only closes it."""
        self._loop = asyncio.get_running_loop()
        assert connection._writer is not None
        self._transport = connection._writer.transport
        self._before = self._transport.get_protocol()
        self._parser = hiredis.Reader(
            protocolError=exceptions.InvalidResponse, replyError=exceptions.ResponseError, notEnoughData=_PARTIAL
        )
        self._reply: asyncio.Future[Any] | None = None
        self.reply_size = 0
        self.lost = False
        self._timeout = 0.0
        self._deadline = 0.0
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    async def ask(self, command: bytes, timeout: float) -> Any:
        """Send a packed command and wait for its reply, for as long as something moves at least every ``timeout`` s.

        Raises:
            ResponseError: the reply is an error.
            ConnectionError, TimeoutError: there is none.
        """
        if self.lost:
            raise exceptions.ConnectionError("Connection closed by server.")
        # One timer for all calls, which looks at the deadline when it ends; asyncio.timeout costs 3.9 µs per call.
        self._timeout, self._deadline = timeout, self._loop.time() + timeout
        if self._timer is None or self._timer.when() > self._deadline:
            self._watch(self._deadline)
        self._reply, self.reply_size = self._loop.create_future(), 0
        self._transport.write(command)
        self._unsent = self._transport.get_write_buffer_size()
        reply = await self._reply
        if isinstance(reply, exceptions.ResponseError):
            raise reply
        return reply

    def _watch(self, until: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(until, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._reply is None or self._reply.done():
            return
        now, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if unsent < self._unsent:  # a large command on a slow network: the server has not seen all of it yet
            self._unsent, self._deadline = unsent, now + self._timeout
        if now < self._deadline:
            self._watch(self._deadline)
        else:
            self._reply.set_exception(TimeoutError("no answer in time"))

    def data_received(self, data: bytes) -> None:
        """A part of a reply; seldom more than one part."""
        self.reply_size += len(data)
        self._parser.feed(data)
        try:
            reply = self._parser.gets()
        except exceptions.InvalidResponse as error:
            self._fail(error)
            return
        if reply is _PARTIAL:
            self._deadline = self._loop.time() + self._timeout
            return
        if self._reply is None or self._reply.done():
            self._fail(exceptions.InvalidResponse("The server sent what nobody asked for."))
            return
        self._reply.set_result(reply)
        if self._parser.has_data():
            self._fail(exceptions.InvalidResponse("The server sent more than it was asked for."))

    def connection_lost(self, error: Exception | None) -> None:
        """The end of the connection, by either side."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail(error or exceptions.ConnectionError("Connection closed by server."))
        self._before.connection_lost(error)  # redis-py waits for it when it closes

    def _fail(self, error: Exception) -> None:
        self.lost = True
        if self._reply is not None and not self._reply.done():
            self._reply.set_exception(error)
        self._transport.close()


class Link:
    """One connection, made when it is first needed, and anew after a failure."""

    def __init__(self, endpoint: Endpoint, *, identify: bool = False) -> None:
        """Arguments:
        endpoint: where to connect to.
        identify: ask for the connection's id when connecting, so that it can be unblocked by another.
        """
        self.endpoint = endpoint
        self.client_id: int | None = None
        self._identify = identify
        self._connection: AbstractConnection | None = None
        self._exchange: _Exchange | None = None
        self._turn = asyncio.Lock()

    async def call(self, *command: Any, timeout: float = REPLY_TIMEOUT) -> Any:
        """Send a command and return the server's raw answer.

        Arguments:
            command: name and arguments; str, bytes, int or float.
            timeout: seconds for which nothing may move, neither the command on its way nor its answer. The same for
                connecting first.

        Raises:
            RedisUnavailable: no connection, no answer in time, or an answer such as LOADING. The command may have been
                carried out.
            RedisError: the server refused the command.
        """
        async with self._turn:
            try:
                exchange = self._exchange or await self._connect(timeout)
                return await exchange.ask(hiredis.pack_command(command), timeout)
            except exceptions.ResponseError as error:
                if str(error).startswith(_PASSING):
                    raise RedisUnavailable(f"{self.endpoint.safe_url} cannot serve now: {error}") from error
                raise RedisError(str(error).removeprefix("ERR ")) from error
            except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
                await self._drop()
                raise self.endpoint.unreachable(error) from error
            except BaseException:  # cancelled, or something we do not know: the connection is not usable any more
                await self._drop()
                raise

    @property
    def ready(self) -> bool:
        """Whether a call would be on its way to the server before it waits for anything."""
        return self._exchange is not None and not self._exchange.lost and not self._turn.locked()

    @property
    def reply_size(self) -> int:
        """Bytes of the last answer."""
        return 0 if self._exchange is None else self._exchange.reply_size

    async def _connect(self, timeout: float) -> _Exchange:
        connection = self.endpoint.connection()
        try:
            async with asyncio.timeout(timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
                if self._identify:
                    await connection.send_packed_command(connection.pack_command("CLIENT", "ID"), check_health=False)
                    self.client_id = await connection.read_response()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._connection, self._exchange = connection, _Exchange(connection)
        return self._exchange

    async def _drop(self) -> None:
        connection, self._connection, self._exchange, self.client_id = self._connection, None, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Disconnect. A later call connects again."""
        connection, self._connection, self._exchange, self.client_id = self._connection, None, None, None
        if connection is not None:
            await connection.disconnect()


class Listener:
    """A connection that is subscribed to sharded channels.

    The server counts it as a subscriber for as long as the process lives: that is how a crash is noticed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: AbstractConnection | None = None

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Connect, and subscribe to each channel by a command of its own (they may be in different slots).

        Raises:
            RedisUnavailable: no connection.
        """
        connection = self._endpoint.connection()
        self._connection = connection
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                await connection.connect()  # type: ignore[no-untyped-call]
                for channel in channels:
                    await connection.send_packed_command(
                        connection.pack_command("SSUBSCRIBE", channel), check_health=False
                    )
                    await connection.read_response()
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            await self.close()
            raise self._endpoint.unreachable(error) from error
        except BaseException:
            await self.close()
            raise

    async def message(self) -> tuple[str, bytes]:
        """Wait for the next message, and return the channel it came on, and what it says.

        Raises:
            RedisUnavailable: the connection is gone.
        """
        assert self._connection is not None
        try:
            while True:
                kind, channel, payload = await self._connection.read_response()
                if kind == b"smessage":
                    return channel.decode(), payload
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError, ValueError, TypeError) as error:
            await self.close()
            raise self._endpoint.unreachable(error) from error

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
