"""What is read from Redis without changing it, and the read of the hot path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from runnel._core.entry_ids import BEGINNING
from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.link import Line, Link
from runnel.errors import ConfigurationError, RedisError

__all__ = [
    "AT_ONCE",
    "MOVED",
    "SEALED",
    "LogState",
    "check_durability",
    "command_calls",
    "connected_members",
    "delete_entries",
    "entries",
    "entries_back",
    "entry_after",
    "entry_back",
    "entry_before",
    "length",
    "log_state",
    "metadata",
    "position",
    "publish",
    "read",
    "registered_processors",
    "server_facts",
    "server_setting",
    "server_version",
    "unblock",
]

RawEntry = list[Any]
"""An entry as the server sends it: ``[id, [field, value, ...]]``."""


async def read(
    link: Link,
    names: Sequence[str],
    cursors: Sequence[bytes],
    *,
    count: int,
    block: int | None,
    timeout: float,
) -> list[tuple[bytes, list[RawEntry]]]:
    """Read behind the cursors. Has no effect on the server, so it can be repeated.

    Arguments:
        names: the logs; all in one slot.
        cursors: per log, the id behind which to read.
        count: entries at most per log.
        block: milliseconds to wait if there is nothing; ``None`` for not at all.
        timeout: seconds to wait for the answer.
    """
    waiting = () if block is None else ("BLOCK", block)
    answer = await link.at(names[0]).call(
        "XREAD", "COUNT", count, *waiting, "STREAMS", *names, *cursors, timeout=timeout
    )
    return answer or []


async def unblock(link: Link, log: str, client_id: int) -> bool:
    """End the blocking read of another connection as if its time were over. False if it was not blocked.

    Arguments:
        log: one of those that are read.
        client_id: the number of the other connection.
    """
    return bool(await link.at(log).call("CLIENT", "UNBLOCK", client_id))


@dataclass(frozen=True, slots=True)
class LogState:
    """The log of a partition: entries now, entries ever added, id of the first and of the last ever added."""

    length: int
    added: int
    first: bytes | None
    last: bytes


async def log_state(link: Link, keys: StreamKeys, partition: int) -> LogState | None:
    """The state of a partition's log; ``None`` if there is none."""
    try:
        flat = await link.at(log := keys.log(partition)).call("XINFO", "STREAM", log)
    except RedisError as error:
        if "no such key" in str(error).lower():
            return None
        raise
    info = dict(zip(flat[::2], flat[1::2], strict=True))
    first = info[b"first-entry"]
    return LogState(info[b"length"], info[b"entries-added"], first[0] if first else None, info[b"last-generated-id"])


async def position(link: Link, keys: StreamKeys, processor: str, partition: int) -> tuple[bytes, int] | None:
    """The committed position of a partition: offset and count; ``None`` if it was never acquired."""
    positions = keys.positions(keys.slot_group(partition), processor)
    stored = await link.at(positions).call("HGET", positions, partition)
    if stored is None:
        return None
    _, offset, count = stored.split(b"|")[:3]
    return offset, int(count)


async def entry_before(link: Link, keys: StreamKeys, partition: int, entry_id: bytes) -> bytes | None:
    """The id of the last entry before ``entry_id``; ``None`` if there is none."""
    if entry_id == BEGINNING:
        return None
    found = await link.at(log := keys.log(partition)).call("XREVRANGE", log, b"(" + entry_id, "-", "COUNT", 1)
    return found[0][0] if found else None


AT_ONCE = 1_000
"""Entries read in one call by who looks at a log, so that the server's other clients do not wait for it."""


async def entries(
    link: Link, keys: StreamKeys, partition: int, first: bytes, last: bytes = b"+", count: int = AT_ONCE
) -> list[RawEntry]:
    """Entries of a partition in order; ``first`` and ``last`` as in ``XRANGE``."""
    found: list[RawEntry] = await link.at(log := keys.log(partition)).call("XRANGE", log, first, last, "COUNT", count)
    return found


async def entries_back(
    link: Link, keys: StreamKeys, partition: int, last: bytes, count: int = AT_ONCE
) -> list[RawEntry]:
    """Entries of a partition from ``last`` backwards; as in ``XREVRANGE``."""
    found: list[RawEntry] = await link.at(log := keys.log(partition)).call("XREVRANGE", log, last, "-", "COUNT", count)
    return found


async def entry_after(link: Link, keys: StreamKeys, partition: int, offset: bytes, number: int) -> bytes | None:
    """The id of the ``number``-th entry behind ``offset``, or of the last one if there are fewer; ``None`` for none."""
    found = None
    while number > 0 and (
        part := await entries(link, keys, partition, b"(" + (found or offset), count=min(number, AT_ONCE))
    ):
        found = part[-1][0]
        number -= len(part)
    return found


async def entry_back(link: Link, keys: StreamKeys, partition: int, offset: bytes, number: int) -> bytes | None:
    """The id of the entry before the last ``number`` ones up to ``offset``; ``None`` if there is none."""
    last, number = offset, number + 1
    while part := await entries_back(link, keys, partition, last, count=min(number, AT_ONCE)):
        number -= len(part)
        if number == 0:
            return bytes(part[-1][0])
        last = b"(" + part[-1][0]
    return None


async def delete_entries(link: Link, log: str, ids: Sequence[str]) -> int:
    """Delete entries of a log by hand. Returns how many were there."""
    chunks = [ids[at : at + AT_ONCE] for at in range(0, len(ids), AT_ONCE)]
    return sum([int(await link.at(log).call("XDEL", log, *chunk)) for chunk in chunks])


async def length(link: Link, keys: StreamKeys, partition: int) -> int:
    """How many entries a partition has."""
    return int(await link.at(log := keys.log(partition)).call("XLEN", log))


async def metadata(link: Link, keys: StreamKeys) -> dict[str, str]:
    """The stored properties of a stream; empty if it was never used."""
    flat = await link.at(keys.metadata).call("HGETALL", keys.metadata)
    return {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}


async def check_durability(link: Link, keys: StreamKeys, durability: str) -> None:
    """Make sure that the server can do what the setting ``durability`` asks for.

    Raises:
        ConfigurationError: it cannot; with what it takes.
    """
    if durability != "disk":
        return
    line = link.at(keys.metadata)
    try:
        await line.call("WAITAOF", 1, 0, 1)
    except RedisError as error:
        if "unknown command" in str(error).lower():
            raise ConfigurationError(
                f'durability="disk" of stream "{keys.stream}" takes Redis 7.2, Valkey 7.2 or later, and this server is '
                f'{await server_version(line)}. Upgrade it, or use durability="replica".'
            ) from error
        raise ConfigurationError(
            f'durability="disk" of stream "{keys.stream}" takes a server with an append-only file, and this one says: '
            f'{error} Set appendonly yes, or use durability="replica".'
        ) from error


async def registered_processors(link: Link, keys: StreamKeys) -> list[str]:
    """The processors that hold back the trimming of a stream, by name."""
    names = [keys.registered(slot_group) for slot_group in range(keys.slot_groups)]
    found = {processor for name in names for processor in await link.at(name).call("SMEMBERS", name)}
    return sorted(unquote(name.decode()) for name in found)


async def connected_members(link: Link, keys: ControlKeys) -> list[str]:
    """The members of a group."""
    return [name.decode() for name in await link.at(keys.members).call("HKEYS", keys.members)]


MOVED = b"moved"
"""What a member is told on its channel when somebody has moved positions by hand."""


SEALED = b"sealed"
"""What a member is told on its channel when the stream has another generation."""


async def publish(link: Link, keys: ControlKeys, message: bytes) -> None:
    """Tell all members of a group something: :data:`MOVED` or :data:`SEALED`."""
    for member in await connected_members(link, keys):
        channel = keys.wake(member)
        await link.at(channel).call("SPUBLISH", channel, message)


async def server_facts(line: Line, *sections: str) -> dict[str, str]:
    """What the server says of itself in ``INFO``; empty if we may not ask."""
    try:
        text = (await line.call("INFO", *sections)).decode()
    except RedisError:
        return {}
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


async def command_calls(link: Link) -> int:
    """How many commands of those kinds that workers send were sent so far, by all clients of the server.

    ``total_commands_processed`` counts what scripts call as well. These are never called by a script.
    """
    facts = await server_facts(link, "commandstats")
    ours = ("eval", "evalsha", "xread", "ssubscribe", "client|unblock", "client|id", "hello", "ping")
    return sum(int(facts.get(f"cmdstat_{name}", "calls=0,").partition(",")[0].removeprefix("calls=")) for name in ours)


async def server_setting(link: Link, name: str) -> str | None:
    """A value of the server's configuration; ``None`` if we may not ask."""
    try:
        found = await link.call("CONFIG", "GET", name)
    except RedisError:
        return None
    return found[1].decode() if found else None


async def server_version(line: Line) -> str:
    """The server's name and version, for people: ``Redis 7.0.15`` or ``Valkey 9.1.2``."""
    facts = await server_facts(line, "server")
    if "valkey_version" in facts:
        return f"Valkey {facts['valkey_version']}"
    return f"Redis {facts.get('redis_version', '?')}"
