"""A primary that sentinels watch: whoever connects asks them which server that is.

After https://redis.io/docs/latest/develop/reference/sentinel-clients/: ask one sentinel after the other, connect to
whom it names, and believe it only if that server says itself that it is a primary. When a fail-over demotes a server,
its connections end or it answers READONLY; then we connect anew, and so ask again. We do not wait for that, though.
"""

import asyncio
import random
import threading
import time
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit
from weakref import WeakKeyDictionary

from redis import exceptions
from redis.asyncio.connection import AbstractConnection, Connection

from runnel._redis.durability import PRIMARY, Confirmation
from runnel._redis.link import REPLY_TIMEOUT, Endpoint, Link
from runnel._redis.urls import bad_url, each_host, masked
from runnel.errors import RedisUnavailable

__all__ = ["SentinelEndpoint", "SentinelLink"]

ANSWER_TIMEOUT = 1.0
"""Seconds for a sentinel, or a server that it names, to be reached and to answer: then the next one is asked."""

CHECK_INTERVAL = 0.25
"""Seconds for which a primary is believed to be one, in a process. A question costs a sentinel some 0.1 ms."""

FORGET = 10.0
"""Seconds for which only sentinels answer that are behind what we know, until they are believed: perhaps somebody has
set them up anew. A primary that was demoted has been told by then, if it can be."""

SENTINEL_PORT = 26_379

USERNAME, PASSWORD = "sentinel_username", "sentinel_password"
"""In the query of the URL: what to tell the sentinels."""


class Named(NamedTuple):
    """Whom a sentinel names.

    Attributes:
        address: host and port of the primary.
        epoch: of the fail-over that has made it one: sentinels that have not heard of it yet name another, with a
            lower epoch. 0 where the sentinel does not say.
    """

    address: tuple[str, int]
    epoch: int


@dataclass(slots=True)
class _Asking:
    """What one event loop asks the sentinels. Each for itself: a handler may block the worker's.

    Attributes:
        task: the last question of a command that has waited for it, or has not.
        asked_at: when the last question began that has ended, on the monotonic clock.
        unanswered: the last question was not, so nobody waits for the next one.
        silent: sentinels that did not answer in time when they were asked last.
    """

    task: asyncio.Task[None] | None = None
    asked_at: float = 0.0
    unanswered: bool = False
    silent: set[Endpoint] = field(default_factory=set)


class SentinelEndpoint(Endpoint):
    """The primary of a service, found by its sentinels. Connections always lead to who is primary at the time."""

    def __init__(self, url: str) -> None:
        """Arguments:
        url: ``redis+sentinel://user:password@host:26379,host2:26379/service/0``, or ``rediss+sentinel://`` for TLS
            to the sentinels and the servers. User and password are those of the servers; those of the sentinels are
            ``?sentinel_username=...&sentinel_password=...``.

        Raises:
            ConfigurationError: that is not what ``url`` looks like.
        """
        urls, path = each_host(url, SENTINEL_PORT)
        if not 1 <= len(path) <= 2 or not all(part.isdigit() for part in path[1:]):
            raise bad_url(
                url, "does not name the service that the sentinels watch: .../SERVICE or .../SERVICE/DATABASE"
            )
        self._service = path[0]
        both = [_for_server_and_sentinel(one) for one in urls]
        super().__init__(both[0][0])
        self._options["db"] = int(path[1]) if path[1:] else 0
        self.safe_url = masked(url)
        self._sentinels = [Endpoint(sentinel) for _, sentinel in both]
        random.shuffle(self._sentinels)
        self._named: Named | None = None
        self._behind_since: float | None = None
        self._lock = threading.Lock()
        self._asking: WeakKeyDictionary[asyncio.AbstractEventLoop, _Asking] = WeakKeyDictionary()

    def link(self, *, identify: bool = False) -> Link:
        """A link to whoever is the primary."""
        return SentinelLink(self, identify=identify)

    async def connect(self) -> AbstractConnection:
        """A connection to the primary: ask for its address, connect to it, and ask it for its role.

        Raises:
            RedisUnavailable: no sentinel knows a primary that says that it is one.
        """
        sentinel, named = await self._ask_for_address()
        server = self.toward(*named.address)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                connection = await server.connect()
                try:
                    [answer] = await _ask(connection, ("ROLE",))
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            self._ask_last(sentinel)
            raise self._no_primary([server.unreachable(error).what]) from error
        role = str(answer) if isinstance(answer, exceptions.ResponseError) else answer[0].decode()
        if role != "master":
            await connection.disconnect(nowait=True)
            self._ask_last(sentinel)
            raise self._no_primary([f"{server.safe_url} is to be the primary and says that it is a {role}."])
        return connection

    async def leads_to_primary(self, connection: AbstractConnection) -> bool:
        """Whether the sentinels still name the server that a connection leads to, as was found out lately."""
        asking = self._asking_here()
        if time.monotonic() - asking.asked_at > CHECK_INTERVAL:
            if asking.task is None or asking.task.done():
                asking.task = asyncio.create_task(self._look(asking), name="runnel-sentinel")
            if not asking.unanswered:  # the sentinels are away: that alone is no reason to wait, or to leave
                await asyncio.wait([asking.task])
        return self._is_named(connection)

    async def none_knows_another(self, connection: AbstractConnection) -> bool:
        """Whether no sentinel knows of a later fail-over than to the server that a connection leads to.

        Who did not answer the last time is asked, but not waited for, unless there is nobody else.
        """
        asking = self._asking_here()
        questions = {sentinel: asyncio.create_task(self._hear(sentinel, asking)) for sentinel in self._sentinels}
        await asyncio.wait([questions[sentinel] for sentinel in questions.keys() - asking.silent] or questions.values())
        return self._is_named(connection)

    def _asking_here(self) -> _Asking:
        return self._asking.setdefault(asyncio.get_running_loop(), _Asking())

    @property
    def _epoch(self) -> int:
        return -1 if self._named is None else self._named.epoch

    def _is_named(self, connection: AbstractConnection) -> bool:
        assert isinstance(connection, Connection)
        return self._named is None or self._named.address == (connection.host, connection.port)

    async def _look(self, asking: _Asking) -> None:
        """Ask one sentinel after the other, until one answers that is not behind."""
        began = time.monotonic()
        for sentinel in self._sentinels:
            named = await self._hear(sentinel, asking)
            asking.unanswered = isinstance(named, str) or not self._believe(sentinel, named)
            if not asking.unanswered:
                break
        asking.asked_at = began

    async def _hear(self, sentinel: Endpoint, asking: _Asking) -> Named | str:
        """Whom a sentinel names, which is believed if there was a fail-over; or why it names none."""
        named = await self._named_by(sentinel, asking)
        if isinstance(named, Named) and (named.epoch > self._epoch or sentinel is self._sentinels[0]):
            self._believe(sentinel, named)
        return named

    async def _named_by(self, sentinel: Endpoint, asking: _Asking) -> Named | str:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                connection = await sentinel.connect()
                try:
                    # Both at once, so that nothing comes between them.
                    state, found = await _ask(
                        connection,
                        ("SENTINEL", "MASTER", self._service),
                        ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
                    )
                finally:
                    await connection.disconnect(nowait=True)
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError | exceptions.TimeoutError):
                asking.silent.add(sentinel)
            return sentinel.unreachable(error).what
        asking.silent.discard(sentinel)
        if isinstance(found, exceptions.ResponseError):
            return sentinel.unreachable(found).what
        if found is None:
            return f'{sentinel.safe_url} knows no service "{self._service}".'
        said = {} if isinstance(state, exceptions.ResponseError) else dict(zip(state[::2], state[1::2], strict=False))
        return Named((found[0].decode(), int(found[1])), int(said.get(b"config-epoch", 0)))

    async def _ask_for_address(self) -> tuple[Endpoint, Named]:
        """Whom the first sentinel names that is not behind what we know."""
        asking = self._asking_here()
        reasons: list[str] = []
        behind: list[tuple[Endpoint, Named]] = []
        sentinels = self._sentinels
        for sentinel in sentinels:
            named = await self._hear(sentinel, asking)
            if isinstance(named, str):
                reasons.append(named)
            elif self._believe(sentinel, named):
                self._behind_since = None
                return sentinel, named
            else:
                behind.append((sentinel, named))
                reasons.append(f"{sentinel.safe_url} has not heard of the last fail-over.")
        if behind:
            now = time.monotonic()
            self._behind_since = self._behind_since or now
            if len(behind) == len(sentinels) or now - self._behind_since > FORGET:
                sentinel, named = max(behind, key=lambda one: one[1].epoch)
                self._believe(sentinel, named, anew=True)
                return sentinel, named
        raise self._no_primary(reasons)

    def _believe(self, sentinel: Endpoint, named: Named, *, anew: bool = False) -> bool:
        """Take what this one says, and ask it first from now on; unless it is behind what we know."""
        with self._lock:
            if named.epoch < self._epoch and not anew:
                return False
            self._sentinels = [sentinel, *(other for other in self._sentinels if other is not sentinel)]
            self._named = named
            return True

    def _ask_last(self, sentinel: Endpoint) -> None:
        """It has named a server that is none, or that is away: perhaps it is cut off, and another one knows better."""
        self._sentinels = [*(other for other in self._sentinels if other is not sentinel), sentinel]

    def _no_primary(self, reasons: list[str]) -> RedisUnavailable:
        return RedisUnavailable(
            f'There is no primary of "{self._service}" now: {" ".join(dict.fromkeys(reasons))}',
            "Compare the URL with what the sentinels watch (SENTINEL MASTERS).",
        )


class SentinelLink(Link):
    """A link that leaves a server that is not the primary any more, also where that does not know it yet.

    After a fail-over that was asked for, or when a primary comes back that was cut off, it takes the sentinels some
    10 s to tell it that it is a replica now. Until then it takes writes, all of which are lost then. So before a
    command, we look now and then who the primary is. One that was frozen carries out, when it goes on, what waited in
    its sockets: so after an answer that was long in coming, we ask all sentinels. One may not have heard of the
    fail-over yet, and while a replica still follows the old primary, it confirms what is lost when it follows the new.
    """

    @property
    def ready(self) -> bool:
        """It may wait for a sentinel first."""
        return False

    async def call(self, *command: Any, timeout: float = REPLY_TIMEOUT, confirm: Confirmation = PRIMARY) -> Any:
        """As :meth:`Link.call`."""
        await self._leave_if_demoted()
        asked = time.monotonic()
        answer = await super().call(*command, timeout=timeout, confirm=confirm)
        if time.monotonic() - asked > CHECK_INTERVAL and await self._leave_if_demoted(late=True):
            raise RedisUnavailable(
                f"A server of {self.endpoint.safe_url} has answered when it was no primary any more."
            )
        return answer

    async def _leave_if_demoted(self, *, late: bool = False) -> bool:
        """Disconnect from a server that is no primary any more: as was found out lately, or ``late``, by asking all.

        Returns:
            Whether that was so.
        """
        connection = self._connection
        if connection is None:
            return False
        ask = cast("SentinelEndpoint", self.endpoint).none_knows_another if late else self.endpoint.leads_to_primary
        if await ask(connection):
            return False
        async with self._turn:
            if connection is self._connection:
                await self.drop()
        return True


async def _ask(connection: AbstractConnection, *commands: tuple[str, ...]) -> list[Any]:
    """What the server answers, errors too."""
    await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
    answers: list[Any] = []
    for _ in commands:
        try:
            answers.append(await connection.read_response())
        except exceptions.ResponseError as error:
            answers.append(error)
    return answers


def _for_server_and_sentinel(url: str) -> tuple[str, str]:
    """What a URL says for the servers, and what for the sentinel that it names: the same, but for who logs in."""
    parts = urlsplit(url)
    query = parse_qsl(parts.query, keep_blank_values=True)
    ours = {name: quote(value, safe="") for name, value in query if name in (USERNAME, PASSWORD)}
    rest = urlencode([(name, value) for name, value in query if name not in ours])
    host = parts.netloc.rpartition("@")[2]
    user = f"{ours.get(USERNAME, '')}:{ours[PASSWORD]}@" if PASSWORD in ours else ""
    return (
        urlunsplit((parts.scheme, parts.netloc, "", rest, "")),
        urlunsplit((parts.scheme, user + host, "", rest, "")),
    )
