"""A primary that sentinels watch: whoever connects asks them which server that is.

After https://redis.io/docs/latest/develop/reference/sentinel-clients/: ask one sentinel after the other, connect to
whom it names, and believe it only if that server says itself that it is a primary. When a fail-over demotes a server,
its connections end or it answers READONLY; then we connect anew, and so ask again. We do not wait for that, though.
"""

import asyncio
import random
import time
from typing import Any, cast
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

SENTINEL_PORT = 26_379

USERNAME, PASSWORD = "sentinel_username", "sentinel_password"
"""In the query of the URL: what to tell the sentinels."""


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
        self._address: tuple[str, int] | None = None
        self._asked_at = 0.0

    def link(self, *, identify: bool = False) -> Link:
        """A link to whoever is the primary."""
        return SentinelLink(self, identify=identify)

    async def connect(self) -> AbstractConnection:
        """A connection to the primary: ask for its address, connect to it, and ask it for its role.

        Raises:
            RedisUnavailable: no sentinel knows a primary that says that it is one.
        """
        server = self.toward(*await self._address_now())
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                connection = await server.connect()
                role = (await _ask(connection, "ROLE", keep=True))[0].decode()
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            raise self._no_primary([server.unreachable(error).what]) from error
        if role != "master":
            await connection.disconnect(nowait=True)
            raise self._no_primary([f"{server.safe_url} is to be the primary and says that it is a {role}."])
        return connection

    async def address(self) -> tuple[str, int]:
        """Who the primary is, as was found out lately.

        Raises:
            RedisUnavailable: no sentinel says.
        """
        if self._address is None or time.monotonic() - self._asked_at > CHECK_INTERVAL:
            self._asked_at = time.monotonic()  # the others go on with the old one meanwhile
            await self._address_now()
        assert self._address is not None
        return self._address

    async def leads_to_primary(self, connection: AbstractConnection) -> bool:
        """Whether the sentinels still name the server that a connection leads to."""
        assert isinstance(connection, Connection)
        try:
            return (connection.host, connection.port) == await self.address()
        except RedisUnavailable:  # the sentinels are away: that alone is no reason to leave
            return True

    async def all_name(self, connection: AbstractConnection) -> bool:
        """Whether no sentinel that answers names another server than the one that a connection leads to."""
        assert isinstance(connection, Connection)
        here = (connection.host, connection.port)
        sentinels = tuple(self._sentinels)
        answers = await asyncio.gather(*map(self._named_by, sentinels))
        for sentinel, named in zip(sentinels, answers, strict=True):
            if not isinstance(named, str) and named != here:
                self._prefer(sentinel, named)
                return False
        return True

    async def _address_now(self) -> tuple[str, int]:
        reasons = []
        for sentinel in tuple(self._sentinels):
            named = await self._named_by(sentinel)
            if not isinstance(named, str):
                return self._prefer(sentinel, named)
            reasons.append(named)
        raise self._no_primary(reasons)

    async def _named_by(self, sentinel: Endpoint) -> tuple[str, int] | str:
        """The address that a sentinel names, or why it names none."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                found = await _ask(await sentinel.connect(), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
            return sentinel.unreachable(error).what
        if found is None:
            return f'{sentinel.safe_url} knows no service "{self._service}".'
        return found[0].decode(), int(found[1])

    def _prefer(self, sentinel: Endpoint, address: tuple[str, int]) -> tuple[str, int]:
        """Believe this one, and ask it first from now on.

        Sentinels learn of a fail-over one after the other, so asking another one might lead back to the old primary.
        """
        self._sentinels = [sentinel, *(other for other in self._sentinels if other is not sentinel)]
        self._address, self._asked_at = address, time.monotonic()
        return address

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
        """Disconnect from a server that is no primary any more, for all that one sentinel knows, or to be ``sure`` any.

        Returns:
            Whether that was so.
        """
        connection = self._connection
        if connection is None:
            return False
        ask = cast("SentinelEndpoint", self.endpoint).all_name if sure else self.endpoint.leads_to_primary
        if await ask(connection):
            return False
        async with self._turn:
            if connection is self._connection:
                await self._drop()
        return True


async def _ask(connection: AbstractConnection, *command: str, keep: bool = False) -> Any:
    """Send one command, and close the connection, unless it is to be kept and there was an answer."""
    answered = False
    try:
        await connection.send_packed_command(connection.pack_command(*command), check_health=False)
        answer = await connection.read_response()
        answered = True
        return answer
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
