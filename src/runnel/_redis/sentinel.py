"""A primary that sentinels watch: whoever connects asks them which server that is.

After https://redis.io/docs/latest/develop/reference/sentinel-clients/: ask one sentinel after the other, connect to
whom it names, and believe it only if that server says itself that it is a primary. When a fail-over demotes a server,
its connections end or it answers READONLY; then we connect anew, and so ask again. We do not wait for that, though.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

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

SILENCE = 5.0
"""Seconds for which a sentinel that has not answered in time is not asked whether what another one says still holds."""

SENTINEL_PORT = 26_379

USERNAME, PASSWORD = "sentinel_username", "sentinel_password"
"""In the query of the URL: what to tell the sentinels."""


class Named(NamedTuple):
    """Whom a sentinel names.

    Attributes:
        address: host and port of the primary.
        epoch: of the fail-over that has made it one: sentinels that have not heard of it yet name another, with a
            lower epoch.
    """

    address: tuple[str, int]
    epoch: int


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
        self._silent_until: dict[Endpoint, float] = {}
        self._named: Named | None = None
        self._asked_at = 0.0
        self._asking = False

    def link(self, *, identify: bool = False) -> Link:
        """A link to whoever is the primary."""
        return SentinelLink(self, identify=identify)

    async def connect(self) -> AbstractConnection:
        """A connection to the primary: ask for its address, connect to it, and ask it for its role.

        Raises:
            RedisUnavailable: no sentinel knows a primary that says that it is one.
        """
        sentinel, named = await self._ask_in_turn(self._sentinels)
        server = self.toward(*named.address)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                connection = await server.connect()
                [answer] = await _ask(connection, ("ROLE",), keep=True)
                if isinstance(answer, exceptions.ResponseError):
                    raise answer
                role = answer[0].decode()
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            self._ask_last(sentinel)
            raise self._no_primary([server.unreachable(error).what]) from error
        if role != "master":
            await connection.disconnect(nowait=True)
            self._ask_last(sentinel)
            raise self._no_primary([f"{server.safe_url} is to be the primary and says that it is a {role}."])
        return connection

    async def leads_to_primary(self, connection: AbstractConnection) -> bool:
        """Whether the sentinels still name the server that a connection leads to, as was found out lately."""
        if not self._asking and time.monotonic() - self._asked_at > CHECK_INTERVAL:
            self._asking = True  # the others go on with the old answer meanwhile
            try:
                await self._ask_in_turn(self._answering())
            except RedisUnavailable:  # the sentinels are away: that alone is no reason to leave
                self._asked_at = time.monotonic()
            finally:
                self._asking = False
        return self._is_named(connection)

    async def none_knows_another(self, connection: AbstractConnection) -> bool:
        """Whether no sentinel that answers knows of a later fail-over than to the server that a connection leads to."""
        sentinels = self._answering() or self._sentinels
        answers = await asyncio.gather(*map(self._named_by, sentinels))
        for sentinel, named in zip(sentinels, answers, strict=True):
            if not isinstance(named, str) and named.epoch > self._epoch:
                self._believe(sentinel, named)
        return self._is_named(connection)

    @property
    def _epoch(self) -> int:
        return -1 if self._named is None else self._named.epoch

    def _is_named(self, connection: AbstractConnection) -> bool:
        assert isinstance(connection, Connection)
        return self._named is None or self._named.address == (connection.host, connection.port)

    def _answering(self) -> list[Endpoint]:
        now = time.monotonic()
        return [sentinel for sentinel in self._sentinels if self._silent_until.get(sentinel, 0.0) <= now]

    async def _ask_in_turn(self, sentinels: Sequence[Endpoint]) -> tuple[Endpoint, Named]:
        """Whom the first one names that does not lag behind what we know; if all lag, the one that lags least."""
        reasons: list[str] = []
        behind: list[tuple[Endpoint, Named]] = []
        for sentinel in sentinels:
            named = await self._named_by(sentinel)
            if isinstance(named, str):
                reasons.append(named)
            elif named.epoch < self._epoch:
                behind.append((sentinel, named))
            else:
                return self._believe(sentinel, named)
        if behind:
            return self._believe(*max(behind, key=lambda one: one[1].epoch))
        raise self._no_primary(reasons)

    async def _named_by(self, sentinel: Endpoint) -> Named | str:
        """Whom a sentinel names, or why it names none."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                # Both at once, so that nothing comes between them.
                state, found = await _ask(
                    await sentinel.connect(),
                    ("SENTINEL", "MASTER", self._service),
                    ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service),
                )
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            if isinstance(error, TimeoutError | exceptions.TimeoutError):
                self._silent_until[sentinel] = time.monotonic() + SILENCE
            return sentinel.unreachable(error).what
        if found is None:
            return f'{sentinel.safe_url} knows no service "{self._service}".'
        if isinstance(state, exceptions.ResponseError):
            return sentinel.unreachable(state).what
        epoch = dict(zip(state[::2], state[1::2], strict=True))[b"config-epoch"]
        return Named((found[0].decode(), int(found[1])), int(epoch))

    def _believe(self, sentinel: Endpoint, named: Named) -> tuple[Endpoint, Named]:
        """Take what this one says, and ask it first from now on."""
        self._sentinels = [sentinel, *(other for other in self._sentinels if other is not sentinel)]
        self._named, self._asked_at = named, time.monotonic()
        return sentinel, named

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
    its sockets: so we look once more after an answer that was long in coming. If that confirms a write, we ask all
    sentinels: while a replica still follows the old primary, it confirms what is lost when it follows the new one.
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
        if time.monotonic() - asked > CHECK_INTERVAL and await self._leave_if_demoted(sure=bool(confirm.command)):
            raise RedisUnavailable(
                f"A server of {self.endpoint.safe_url} has answered when it was no primary any more."
            )
        return answer

    async def _leave_if_demoted(self, *, sure: bool = False) -> bool:
        """Disconnect from a server that is no primary any more, for all that one sentinel knows; to be ``sure``, any.

        Returns:
            Whether that was so.
        """
        connection = self._connection
        if connection is None:
            return False
        ask = cast("SentinelEndpoint", self.endpoint).none_knows_another if sure else self.endpoint.leads_to_primary
        if await ask(connection):
            return False
        async with self._turn:
            if connection is self._connection:
                await self._drop()
        return True


async def _ask(connection: AbstractConnection, *commands: tuple[str, ...], keep: bool = False) -> list[Any]:
    """What the server answers, errors too. The connection is closed, unless it is to be kept and there were answers."""
    answered = False
    answers: list[Any] = []
    try:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands:
            try:
                answers.append(await connection.read_response())
            except exceptions.ResponseError as error:
                answers.append(error)
        answered = True
        return answers
    finally:
        if not (keep and answered):
            await connection.disconnect(nowait=True)


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
