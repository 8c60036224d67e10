"""A primary that sentinels watch: whoever connects asks them which server that is.

After https://redis.io/docs/latest/develop/reference/sentinel-clients/: ask one sentinel after the other, connect to
whom it names, and believe it only if that server says itself that it is a primary. When a fail-over demotes a server,
its connections end or it answers READONLY; then we connect anew, and so ask again.
"""

import asyncio
import random
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from redis import exceptions
from redis.asyncio.connection import AbstractConnection

from runnel._redis.link import Endpoint
from runnel._redis.urls import bad_url, each_host, masked
from runnel.errors import RedisUnavailable

__all__ = ["SentinelEndpoint"]

ANSWER_TIMEOUT = 1.0
"""Seconds for a sentinel, or a server that it names, to be reached and to answer: then the next one is asked."""

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

    async def connect(self) -> AbstractConnection:
        """A connection to the primary.

        1. Ask a sentinel after the other, in any order, for the address.
        2. Connect to it; ask it for its role.

        Raises:
            RedisUnavailable: no sentinel knows a primary that says that it is one; with what each of them has said.
        """
        reasons = []
        for sentinel in random.sample(self._sentinels, len(self._sentinels)):
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    address = await _ask(await sentinel.connect(), "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
                reasons.append(str(sentinel.unreachable(error).what))
                continue
            if address is None:
                reasons.append(f'{sentinel.safe_url} knows no service "{self._service}".')
                continue
            server = self.toward(address[0].decode(), int(address[1]))
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    connection = await server.connect()
                    role = (await _ask(connection, "ROLE", keep=True))[0].decode()
            except (exceptions.RedisError, OSError, asyncio.IncompleteReadError) as error:
                reasons.append(str(server.unreachable(error).what))
                continue
            if role == "master":
                return connection
            await connection.disconnect(nowait=True)
            reasons.append(f"{server.safe_url} is to be the primary and says that it is a {role}.")
        raise RedisUnavailable(
            f'There is no primary of "{self._service}" now: {" ".join(dict.fromkeys(reasons))}',
            "Compare the URL with what the sentinels watch (SENTINEL MASTERS).",
        )


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
