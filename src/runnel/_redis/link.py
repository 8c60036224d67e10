"""One connection to one server, one command at a time.

Owns connecting, time-outs and the translation of errors. Who serves a key is for ``sentinel.py`` and ``cluster.py`` to
find out. A command that fails or is cancelled in the middle closes its
connection, because what comes next on it would be the answer to something else. Nothing is retried here: who calls
knows whether its operation may be repeated.
"""

import asyncio
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import hiredis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, parse_url

from runnel._redis.durability import PRIMARY, Confirmation
from runnel._redis.refusals import CURES, refused
from runnel._redis.urls import masked, not_a_url
from runnel.errors import NotDurable, RedisError, RedisUnavailable

__all__ = ["REPLY_TIMEOUT", "Endpoint", "Line", "Link", "Listener", "Redirected"]

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
    "UNBLOCKED",
    "OOM",
    "MISCONF",
    "BUSY ",
)
"""What an error begins with that goes away by waiting: a restart, a fail-over, full memory, a full disk."""

_DEMOTED = ("READONLY", "MASTERDOWN", "UNBLOCKED")
"""What a server says that is no primary any more: whoever connects anew may find the one that is."""

_DEMOTED_MEANWHILE = "cannot be used with replica instances"
"""What WAIT and WAITAOF say where the command before them has still found a primary."""

_UNKNOWN_USER = ("NOAUTH ", "ERR Protocol error: unauthenticated")
"""What it says to who has not given a password; the latter where the command is a long one."""

_ELSEWHERE = ("MOVED ", "ASK ")
"""What a node of a cluster says that does not serve the slot of a key."""

_HALF_MOVED = ("access a non local key", "access keys of different slots")
"""What a script ends with that looks up a key whose slot is being moved to another node."""


class Line(Protocol):
    """A way to the server that has a key."""

    async def call(self, *command: Any, timeout: float = ..., confirm: Confirmation = ...) -> Any:
        """Send a command and return the server's raw answer; see :meth:`Link.call`."""


class Redirected(RedisError):
    """A node of a cluster says that another one has the key.

    Attributes:
        host: of that node; empty where it is the same as that of the node that was asked.
        port: of that node.
        asking: only for this command, because the slot is on its way there.
    """

    def __init__(self, url: str, answer: str) -> None:
        kind, _, address = answer.split(" ")[:3]
        host, _, port = address.rpartition(":")
        self.host, self.port, self.asking = host, int(port), kind == "ASK"
        super().__init__(
            f"{url} is a node of a Redis Cluster, and another one has this key ({answer}). Say so in the URL: "
            "redis+cluster://HOST:PORT"
        )


class Endpoint:
    """Where the server is. There are subclasses for several servers: ``SentinelEndpoint`` and ``ClusterEndpoint``.

    Used by all event loops of a process, so it keeps no connection.

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
            raise not_a_url(url, error) from None
        self._connection_class: type[AbstractConnection] = self._options.pop("connection_class", Connection)
        if issubclass(self._connection_class, Connection):
            self._options.setdefault("socket_keepalive", True)
            self._options.setdefault("socket_keepalive_options", _KEEPALIVE)
        # Our own time-outs, one per command, see Link.call. redis-py's would start a task for every write.
        self._options.update(socket_timeout=None, socket_connect_timeout=CONNECT_TIMEOUT, protocol=2, retry=None)

    def toward(self, host: str, port: int) -> "Endpoint":
        """The same, user, password and TLS included, at another address."""
        other = object.__new__(Endpoint)
        scheme = "rediss" if issubclass(self._connection_class, SSLConnection) else "redis"
        other.safe_url = f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
        other._connection_class = self._connection_class
        other._options = {**self._options, "host": host, "port": port}
        return other

    async def connect(self) -> AbstractConnection:
        """A new connection, logged in. The caller closes it.

        Raises:
            ConnectionError, TimeoutError, OSError, RedisUnavailable: there is none.
        """
        connection = self._connection_class(**self._options)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def link(self, *, identify: bool = False) -> "Link":
        """A link, not yet connected; ``identify`` as for :class:`Link`."""
        return Link(self, identify=identify)

    async def connect_to(self, key: str) -> AbstractConnection:
        """As :meth:`connect`, to the primary that has a key or a channel."""
        return await self.connect()

    async def leads_to_primary(self, connection: AbstractConnection) -> bool:
        """Whether there is no better connection than this one, as far as can be found out without asking its server."""
        return True

    def doubt(self) -> None:
        """What was known of who serves what has turned out wrong: look again before it is used the next time."""

    def together(self, keys: Iterable[str]) -> list[list[str]]:
        """Keys or channels, grouped so that one server has each group for as long as it serves what it does now."""
        every = list(keys)
        return [every] if every else []

    async def primaries(self) -> "list[Endpoint]":
        """Every server that events are sent to."""
        return [self]

    def unreachable(self, error: BaseException) -> RedisUnavailable:
        """What to raise when nothing could be sent, or no answer came."""
        detail = str(error).strip() or (
            "no answer in time" if isinstance(error, TimeoutError) else type(error).__name__
        )
        if isinstance(error, ConnectionRefusedError) or isinstance(error.__context__, ConnectionRefusedError):
            detail = "connection refused"
        elif isinstance(error, exceptions.AuthenticationError):
            return RedisUnavailable(
                f"{self.safe_url} refused the user or password ({detail.rstrip('.')}).",
                "Give the right ones in the URL: redis://USER:PASSWORD@HOST:PORT, with %40 for an @ in the password.",
            )
        return RedisUnavailable(
            f"Cannot reach {self.safe_url} ({detail.rstrip('.')}).",
            "Start a server with `runnel server`, or name another one: --redis-url, redis_url in App(...), or "
            "RUNNEL_REDIS_URL where App(...) has none.",
        )


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
            self._reply.set_exception(TimeoutError())

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
    """One connection, made when it is first needed, and anew after a failure.

    A :class:`~runnel._redis.cluster.ClusterLink` is one to every node that is needed. Which of them is chosen by
    :meth:`at`, so whoever has a key asks for its line; on a single server that is the link itself.
    """

    def __init__(self, endpoint: Endpoint, *, identify: bool = False) -> None:
        """Arguments:
        endpoint: where to connect to.
        identify: ask for the connection's id when connecting, so that it can be unblocked by another.
        """
        self.endpoint = endpoint
        self._client_id: int | None = None
        self._identify = identify
        self._connection: AbstractConnection | None = None
        self._exchange: _Exchange | None = None
        self._turn = asyncio.Lock()

    def at(self, key: str) -> Line:
        """The line to the server that has a key."""
        return self

    async def call(self, *command: Any, timeout: float = REPLY_TIMEOUT, confirm: Confirmation = PRIMARY) -> Any:
        """Send a command and return the server's raw answer.

        Arguments:
            command: name and arguments; str, bytes, int or float.
            timeout: seconds for which nothing may move, neither the command on its way nor its answer. The same for
                connecting first.
            confirm: where the effect of the command must be, before this returns.

        Raises:
            RedisUnavailable: no connection, no answer in time, or an answer such as LOADING. The command may have been
                carried out.
            NotDurable: it was carried out, but not confirmed in time.
            RedisError: the server refused the command.
        """
        await self._turn.acquire()
        try:
            exchange = self._exchange or await self._connect(timeout)
            answer = await exchange.ask(hiredis.pack_command(command), timeout)
            if confirm.command:
                # On the same connection: the server waits for what this one has written.
                confirm.check(await exchange.ask(hiredis.pack_command(confirm.command), timeout + confirm.seconds))
            return answer
        except exceptions.ResponseError as error:
            text = str(error)
            if text.startswith(_ELSEWHERE):
                raise Redirected(self.endpoint.safe_url, text) from None
            if demoted := text.startswith(_DEMOTED) or _DEMOTED_MEANWHILE in text:
                await self.drop()
                self.endpoint.doubt()
            if demoted or text.startswith(_PASSING) or any(part in text for part in _HALF_MOVED):
                cure = CURES.get(text.partition(" ")[0], "")
                raise RedisUnavailable(f"{self.endpoint.safe_url} cannot serve now: {text}", cure) from error
            if text.startswith(_UNKNOWN_USER):
                raise self.endpoint.unreachable(exceptions.AuthenticationError(text.partition(" ")[2])) from error
            raise refused(self.endpoint.safe_url, command, text) from error
        except NotDurable:
            raise  # the connection is sound
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            await self.drop()
            raise self.endpoint.unreachable(error) from error
        except BaseException:  # cancelled, or something we do not know: the connection is not usable any more
            await self.drop()
            raise
        finally:
            self._turn.release()

    @property
    def ready(self) -> bool:
        """Whether a call would be on its way to the server before it waits for anything."""
        return self._exchange is not None and not self._exchange.lost and not self._turn.locked()

    @property
    def connection(self) -> object:
        """The connection that was used last, to tell it from others: another one may lead to another server."""
        return self._connection

    @property
    def client_id(self) -> int | None:
        """The server's number of the connection, if it was asked for and there is one."""
        return self._client_id

    @property
    def reply_size(self) -> int:
        """Bytes of the last answer."""
        return 0 if self._exchange is None else self._exchange.reply_size

    async def _connect(self, timeout: float) -> _Exchange:
        async with asyncio.timeout(timeout):
            connection = await self.endpoint.connect()
            try:
                if self._identify:
                    await connection.send_packed_command(connection.pack_command("CLIENT", "ID"), check_health=False)
                    self._client_id = await connection.read_response()
            except BaseException:
                await connection.disconnect(nowait=True)
                raise
        self._connection, self._exchange = connection, _Exchange(connection)
        return self._exchange

    async def drop(self) -> None:
        """Disconnect without waiting for anything."""
        connection, self._connection, self._exchange, self._client_id = self._connection, None, None, None
        if connection is not None:
            await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Disconnect. A later call connects again."""
        connection, self._connection, self._exchange, self._client_id = self._connection, None, None, None
        if connection is not None:
            with suppress(exceptions.RedisError, OSError):  # a peer that does not answer; we are rid of it anyway
                await connection.disconnect()


class Listener:
    """A connection that is subscribed to sharded channels of one server.

    The server counts it as a subscriber for as long as the process lives: that is how a crash is noticed.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._connection: AbstractConnection | None = None

    async def subscribe(self, channels: Sequence[str]) -> None:
        """Connect, and subscribe to each channel by a command of its own (they may be in different slots).

        Raises:
            RedisUnavailable: no connection.
        """
        try:
            async with asyncio.timeout(REPLY_TIMEOUT):
                connection = self._connection = await self._endpoint.connect_to(channels[0])
                for channel in channels:
                    await connection.send_packed_command(
                        connection.pack_command("SSUBSCRIBE", channel), check_health=False
                    )
                    await connection.read_response()
        except exceptions.ResponseError as error:  # MOVED or LOADING, for instance, or not allowed to
            await self._give_up()
            raise RedisUnavailable(f"{self._endpoint.safe_url} refuses a channel: {error}") from error
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            await self._give_up()
            raise self._endpoint.unreachable(error) from error
        except BaseException:
            await self.close()
            raise

    async def message(self) -> tuple[str, bytes]:
        """Wait for the next message, and return the channel it came on, and what it says.

        Raises:
            RedisUnavailable: the connection is gone, or the channel is another server's now.
        """
        assert self._connection is not None
        try:
            while True:
                kind, channel, payload = await self._connection.read_response()
                if kind == b"smessage":
                    return channel.decode(), payload
                if kind == b"sunsubscribe":
                    raise exceptions.ConnectionError("the channel has moved to another server")
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError, ValueError, TypeError) as error:
            await self._give_up()
            raise self._endpoint.unreachable(error) from error

    async def leave_if_demoted(self) -> None:
        """End the subscription if its server is no primary any more, also where that does not know it yet."""
        connection = self._connection
        if connection is None or await self._endpoint.leads_to_primary(connection):
            return
        if connection is self._connection and connection._writer is not None:
            connection._writer.transport.close()  # whoever waits for a message finds out

    async def _give_up(self) -> None:
        self._endpoint.doubt()
        await self.close()

    async def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.disconnect(nowait=True)
