"""Going over from one generation of a stream to the next.

Every step may be repeated, by anybody, at any time: the metadata say how far it is, and nothing there goes back.
"""

from collections.abc import Iterator, Mapping, Sequence

from runnel._core.entry_ids import BEGINNING, parse
from runnel._core.generations import BEGUN, Generation, Generations
from runnel._redis.durability import PRIMARY, Confirmation
from runnel._redis.keys import StreamKeys
from runnel._redis.link import Link
from runnel._redis.queries import metadata
from runnel._redis.scripts import ALL, _Script, look
from runnel.errors import MigrationConflict, MoveFailed

__all__ = [
    "arrive",
    "begin",
    "forget",
    "forget_processor",
    "generations_of",
    "is_paused",
    "leave",
    "propose",
    "register",
    "see_through",
    "settle",
    "unprocessed",
    "vacant",
]

_propose = _Script("propose")
_seal = _Script("seal", includes=("log",))
_lay_out = _Script("lay_out", includes=("log",))
_succeed = _Script("succeed")
_at_least = _Script("at_least")


async def generations_of(link: Link, keys: StreamKeys) -> Generations | None:
    """The generations of a stream; ``None`` if it was never used."""
    stored = await metadata(link, keys)
    return Generations.of(stored) if stored else None


async def propose(link: Link, keys: StreamKeys, following: Generation) -> bool:
    """Declare the generation that comes after the one in use. False if something else was declared before."""
    return bool(await _propose(link, (keys.metadata,), (following.number - 1, following.division)))


async def see_through(link: Link, keys: StreamKeys, confirm: Confirmation = PRIMARY) -> Generations:
    """Let producers go over to the generation that was proposed, if one was.

    1. Seal every slot group of the old one. Of each, this is one instant for all producers: what is behind it in
       time is refused, so it cannot come in front of what is sent to the new generation. A seal that a fail-over
       loses lets a producer that does not know of it yet append where nobody looks any more, so it is confirmed as
       the stream's events are.
    2. Lay out the new one. Nothing is trimmed there that a processor of the old one has not processed. Its ids are
       above all of the old one: they grow for every key, and partition and id name one event of the stream.
    3. Name the new one. Until then producers that were refused wait, or do this themselves: whoever proposed it may
       have been killed.

    Arguments:
        link: to the servers.
        keys: of the stream.
        confirm: where the seals must be stored.

    Returns:
        The generations after that.
    """
    while True:
        generations = await generations_of(link, keys)
        assert generations is not None, "whoever asks has found the stream"
        if generations.following is None:
            return generations
        old = StreamKeys.of(keys.app, keys.stream, generations.current)
        new = StreamKeys.of(keys.app, keys.stream, generations.following)
        registered, highest = set[bytes](), BEGINNING
        for slot_group, logs in _logs(old, generations.current):
            names = (old.sealed(slot_group), old.registered(slot_group), *logs)
            there, last = await _seal(link, names, (generations.following.number,), confirm=confirm)  # 1
            registered.update(there)
            highest = max(highest, last, key=parse)
        for slot_group, logs in _logs(new, generations.following):
            await _lay_out(link, (new.registered(slot_group), *logs), (highest, *sorted(registered)))  # 2
        await _succeed(link, (keys.metadata,), (generations.current.number,))  # 3


async def leave(link: Link, keys: StreamKeys, address: str, number: str, confirm: Confirmation) -> str:
    """Declare that a stream is moved to another server, and let it take nothing here any more.

    Returns:
        The number of the move: ``number``, or that of one that was declared before.

    Raises:
        MigrationConflict: it is being moved to another address already.
    """
    await see_through(link, keys, confirm)
    line = link.at(keys.metadata)
    await line.call("HSETNX", keys.metadata, "moving", f"{number}|{address}")
    declared, _, to = (await line.call("HGET", keys.metadata, "moving")).decode().partition("|")
    if to != address:
        raise MigrationConflict(f'"{keys.stream}" is being moved to {to} already. Finish that first.')
    generations = await see_through(link, keys, confirm)
    current = StreamKeys.of(keys.app, keys.stream, generations.current)
    for slot_group, logs in _logs(current, generations.current):
        names = (current.sealed(slot_group), current.registered(slot_group), *logs)
        await _seal(link, names, ("moved",), confirm=confirm)
    return str(declared)


async def vacant(link: Link, keys: StreamKeys, number: str) -> bool:
    """Whether a stream can be moved to another server: nothing is there, or what has come with the move ``number``.

    Returns:
        Whether there is something left to copy: false if all of it has come.

    Raises:
        MoveFailed: there is another stream of that name.
    """
    there = await metadata(link, keys)
    if there and number not in (there.get("arriving"), there.get("came")):
        raise MoveFailed(
            f'{link.endpoint.safe_url} has a stream "{keys.stream}" of the app "{keys.app}" already. A stream can only '
            "be moved to a server that has none of that name."
        )
    return "came" not in there


async def arrive(link: Link, keys: StreamKeys, stored: Mapping[str, str], number: str) -> bool:
    """Declare on the other server that a stream arrives there, with the metadata that it has.

    Returns:
        Whether there is something left to copy. If not, it may be in use there already.

    Raises:
        MoveFailed: there is another stream of that name.
    """
    left = await vacant(link, keys, number)
    if left:
        words = [word for name, value in stored.items() if name not in ("moving", "came") for word in (name, value)]
        await link.at(keys.metadata).call("HSET", keys.metadata, "arriving", number, *words)
    return left


async def settle(
    source: Link, target: Link, keys: StreamKeys, number: str, address: str, confirm: Confirmation
) -> None:
    """Let the stream be used on the other server, and be known to be there on this one."""
    name = keys.metadata
    await target.at(name).call("HSET", name, "came", number, confirm=confirm)
    await target.at(name).call("HDEL", name, "arriving")
    await source.at(name).call("HSET", name, "moved", address)
    await source.at(name).call("HDEL", name, "moving")


async def register(link: Link, keys: StreamKeys, processor: str) -> None:
    """Let nothing be trimmed in a generation that this processor has not processed."""
    for slot_group in range(keys.slot_groups):
        registered = keys.registered(slot_group)
        await link.at(registered).call("SADD", registered, keys.group_name(processor))


async def unprocessed(link: Link, keys: StreamKeys, processor: str, partitions: Sequence[int]) -> list[int]:
    """The partitions with entries that a processor has not processed.

    Of a generation that is sealed, one that was found to be processed stays so.
    """
    looks = await look(link, keys, processor, partitions)
    return [partition for partition, found in looks.items() if found.following]


async def is_paused(link: Link, keys: StreamKeys, processor: str) -> bool:
    """Whether a person has paused a processor, in this generation."""
    parked = keys.control(processor).parked
    return bool(await link.at(parked).call("HEXISTS", parked, ALL))


async def begin(link: Link, keys: StreamKeys, processor: str, generation: Generation) -> None:
    """Note that a processor has processed everything before ``generation``."""
    await _at_least(link, (keys.metadata,), (BEGUN + keys.group_name(processor), generation.number))


async def forget_processor(link: Link, keys: StreamKeys, processor: str) -> None:
    """Forget where a processor is; if it is run again, it begins with the oldest generation there is."""
    await link.at(keys.metadata).call("HDEL", keys.metadata, BEGUN + keys.group_name(processor))


async def forget(link: Link, keys: StreamKeys, generation: Generation) -> None:
    """Remove the logs of an earlier generation, and the positions there. The seals stay, for producers of that time.

    The generations begin with the one behind it from then on, also if this is interrupted: then repeat it.
    """
    await _at_least(link, (keys.metadata,), ("oldest", generation.number + 1))
    old = StreamKeys.of(keys.app, keys.stream, generation)
    for slot_group, logs in _logs(old, generation):
        names = old.registered(slot_group)
        registered = await link.at(names).call("SMEMBERS", names)
        positions = [old.positions_prefix(slot_group) + name.decode() for name in registered]
        for name in (*logs, *positions, names):
            await link.at(name).call("UNLINK", name)


def _logs(keys: StreamKeys, generation: Generation) -> Iterator[tuple[int, list[str]]]:
    """The logs of a generation, by slot group."""
    for slot_group in range(generation.slot_groups):
        yield slot_group, [keys.log(p) for p in range(generation.partition_count) if keys.slot_group(p) == slot_group]
