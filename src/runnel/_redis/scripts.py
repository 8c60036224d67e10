"""One async function per script, with typed answers.

Everything that changes ownership or progress goes through here. Each function may be repeated after an error without
doing its work twice; where that needs a token or a sequence, it is an argument.
"""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from typing import Any, NamedTuple

from runnel._core.entry_ids import BEGINNING
from runnel._redis.durability import PRIMARY, Confirmation
from runnel._redis.keys import ControlKeys, StreamKeys, task_ticks
from runnel._redis.link import REPLY_TIMEOUT, Link
from runnel.errors import RedisError

__all__ = [
    "NOTHING",
    "Acquired",
    "AppendStatus",
    "Appended",
    "Batch",
    "Beat",
    "Commit",
    "CommitStatus",
    "Entry",
    "Look",
    "Op",
    "Seat",
    "Stale",
    "acknowledge",
    "acquire",
    "append",
    "claim",
    "commit",
    "count_entries",
    "count_loss",
    "declare",
    "forget_group",
    "forget_positions",
    "had",
    "heartbeat",
    "look",
    "losses",
    "note_slow",
    "note_stalled",
    "park",
    "quarantine",
    "reset",
]

NOTHING = (0, BEGINNING)
"""Of a member that has committed nothing in a partition."""

Entry = Sequence[bytes]
"""The fields of an entry, flat: field, value, field, value, ..."""


class _Script:
    """A script of this package, run by its digest, and sent whole where the server does not know it."""

    def __init__(self, name: str, *, includes: Sequence[str] = ()) -> None:
        directory = resources.files(__package__).joinpath("lua")
        flags, header_and_body = directory.joinpath(f"{name}.lua").read_bytes().split(b"\n", 1)
        included = [directory.joinpath(f"{other}.lua").read_bytes() for other in includes]
        self._source = b"\n".join((flags, *included, header_and_body))
        self._digest = hashlib.sha1(self._source, usedforsecurity=False).hexdigest()

    async def __call__(
        self,
        link: Link,
        keys: Sequence[str],
        arguments: Sequence[Any],
        timeout: float = REPLY_TIMEOUT,
        confirm: Confirmation = PRIMARY,
    ) -> Any:
        line = link.at(keys[0])
        try:
            return await line.call(
                "EVALSHA", self._digest, len(keys), *keys, *arguments, timeout=timeout, confirm=confirm
            )
        except RedisError as error:
            if not str(error).startswith(("NOSCRIPT", "No matching script")):
                raise
            return await line.call("EVAL", self._source, len(keys), *keys, *arguments, timeout=timeout, confirm=confirm)


_heartbeat = _Script("heartbeat")
_quarantine = _Script("quarantine")
_acquire = _Script("acquire", includes=("log",))
_commit = _Script("commit", includes=("log",))
_append = _Script("append")
_reset = _Script("reset", includes=("log",))
_declare = _Script("declare")
_claim = _Script("claim")
_count = _Script("count")
_losses = _Script("losses", includes=("log",))
_had = _Script("had", includes=("log",))
_count_loss = _Script("count_loss")
_acknowledge = _Script("acknowledge")
_look = _Script("look", includes=("log",))
_park = _Script("park")
_slow = _Script("slow")
_forget_group = _Script("forget_group")
_forget_positions = _Script("forget_positions", includes=("log",))


class Op(str, Enum):
    """What a member says with a heartbeat."""

    JOIN = "join"
    REJOIN = "rejoin"
    BEAT = "beat"
    DRAIN = "drain"
    LEAVE = "leave"


@dataclass(frozen=True, slots=True)
class Seat:
    """A member and its terms. Durations in milliseconds; ``slot_groups`` are those of the stream."""

    keys: ControlKeys
    member: str
    partition_count: int
    session: int
    join_delay: int
    grace: int
    silence: int
    slot_groups: int = 1


@dataclass(frozen=True, slots=True)
class Beat:
    """The coordinator's answer.

    Attributes:
        known: whether we are a member. If not, we own nothing and must join again.
        epoch: the number of the current assignment, ``@``, and what is another for each run of the server.
        full: whether ``granted`` and ``revoked`` are complete. If not, nothing has changed since they were.
        waiting: how many partitions will be ours when their owners have released them.
        again: seconds after which the group needs a heartbeat; ``None`` if it does not.
        granted: partition -> token, of what we own and may keep.
        revoked: partition -> token, of what we own and must hand back.
        quarantined: those of ``granted`` that are marked as poisoned.
        paused: those of ``granted`` that a person has paused; if a partition is both, it is in ``quarantined``.
        sent: monotonic time at which it was asked for: it does not know what happened later.
    """

    known: bool
    epoch: str
    full: bool
    waiting: int
    again: float | None
    granted: Mapping[int, int]
    revoked: Mapping[int, int]
    quarantined: frozenset[int]
    paused: frozenset[int] = frozenset()
    sent: float = 0.0


async def heartbeat(
    link: Link,
    seat: Seat,
    op: Op,
    *,
    epoch: str = "",
    settled: bool = False,
    floor: int = 0,
    unheard: float = 0.0,
    releases: Sequence[tuple[int, int]] = (),
) -> Beat:
    """Tell the coordinator that we live; see the header of ``heartbeat.lua``.

    Arguments:
        epoch: that of the last answer.
        settled: whether nothing is open between us and the coordinator, so that it need not send everything.
        floor: new tokens must be above it.
        unheard: seconds since we first asked what we have still no answer to; 0 if this is the first time that we ask.
        releases: partition and token of what we have handed back since the last answer.

    An answer is waited for during a quarter of the session, but at least a second: after a lost one there is time to
    ask again.
    """
    keys, sent = seat.keys, time.monotonic()
    status, new_epoch, full, waiting, again, granted, revoked = await _heartbeat(
        link,
        (keys.group, keys.members, keys.targets, keys.owners, keys.parked),
        (
            op.value,
            seat.member,
            seat.session,
            seat.join_delay,
            seat.grace,
            seat.silence,
            seat.partition_count,
            epoch,
            int(settled),
            floor,
            int(unheard * 1000),
            seat.slot_groups,
            *(number for release in releases for number in release),
        ),
        timeout=min(REPLY_TIMEOUT, max(1.0, seat.session / 4000)),
    )
    return Beat(
        known=status == b"OK",
        epoch=new_epoch.decode(),
        full=full == 1,
        waiting=waiting,
        again=None if again < 0 else again / 1000,
        granted={int(p): int(token) for p, token in zip(granted[::3], granted[1::3], strict=True)},
        revoked={int(p): int(token) for p, token in zip(revoked[::2], revoked[1::2], strict=True)},
        quarantined=frozenset(int(p) for p, mark in zip(granted[::3], granted[2::3], strict=True) if mark == b"1"),
        paused=frozenset(int(p) for p, mark in zip(granted[::3], granted[2::3], strict=True) if mark == b"2"),
        sent=sent,
    )


async def quarantine(link: Link, seat: Seat, partition: int, token: int, details: Mapping[str, Any]) -> bool:
    """Mark a partition that we own as poisoned. False if we do not own it any more."""
    keys = seat.keys
    answer = await _quarantine(
        link, (keys.owners, keys.parked), (partition, seat.member, token, json.dumps(dict(details)))
    )
    return bool(answer == b"OK")


STALLED = "stalled:"
"""What begins the fields of the slow hash that are about partitions which make no progress."""

ALL = "*"
"""The field of the parked hash that parks all partitions."""


async def park(link: Link, keys: ControlKeys, field: int | str, expected: bytes, new: bytes) -> bool:
    """Change by hand what is parked, and tell the members.

    Arguments:
        field: a partition, or :data:`ALL`.
        expected: the value that is there; empty for none.
        new: the new value; empty for none.

    Returns:
        False if another value was there: somebody was faster, and nothing was changed.
    """
    return bool(await _park(link, (keys.group, keys.members, keys.parked), (field, expected, new)))


async def note_slow(link: Link, keys: ControlKeys, events: Sequence[tuple[int, int, str, float]]) -> None:
    """Note which events have been in progress for long: partition, token, id (empty: none any more), seconds."""
    arguments = [word for p, token, event, seconds in events for word in (p, token, event, int(seconds * 1000))]
    await _slow(link, (keys.slow,), arguments)


async def note_stalled(link: Link, keys: ControlKeys, stalls: Sequence[tuple[int, int, str, float]]) -> None:
    """Note which partitions make no progress: partition, token, what they do (empty: it is over), seconds."""
    arguments = [w for p, token, doing, seconds in stalls for w in (f"{STALLED}{p}", token, doing, int(seconds * 1000))]
    await _slow(link, (keys.slow,), arguments)


async def forget_group(link: Link, keys: ControlKeys) -> list[str]:
    """Remove a group, unless members of it live. Returns their names; if there are any, nothing was changed."""
    names = (keys.group, keys.members, keys.targets, keys.owners, keys.parked, keys.slow)
    return [name.decode() for name in await _forget_group(link, names, ())]


async def forget_positions(
    link: Link, keys: StreamKeys, processor: str, slot_group: int, partitions: Sequence[int]
) -> None:
    """Remove a processor's positions, registration and consumer groups from a slot group."""
    logs = [keys.log(partition) for partition in partitions]
    names = (keys.positions(slot_group, processor), keys.registered(slot_group), *logs)
    await _forget_positions(link, names, (keys.group_name(processor),))


@dataclass(frozen=True, slots=True)
class Acquired:
    """A partition is ours in its data slot.

    Attributes:
        offset: the position: the last entry that was processed.
        count: how many entries of the log, counted from its very first one, end there.
        lost: entries that were removed unprocessed.
        replaced: the log is another one than the position was taken from, or nothing says where the position was: what
            was there and was not processed may be lost, however much that was.
        rolled_back: the position that Redis has lost: it was stored behind the end of the log, or had been committed by
            this member; else empty.
    """

    offset: bytes
    count: int
    lost: int
    rolled_back: bytes
    replaced: bool = False


@dataclass(frozen=True, slots=True)
class Stale:
    """A higher token was seen in the data slot."""

    token: int


async def acquire(
    link: Link,
    keys: StreamKeys,
    processor: str,
    partition: int,
    token: int,
    member: str,
    known: tuple[int, bytes] = NOTHING,
) -> Acquired | Stale:
    """Fence the previous owner of a partition, and learn where to go on; see the header of ``acquire.lua``.

    Arguments:
        known: what this member has last committed in the partition: the token, and the position.
    """
    slot = keys.slot_group(partition)
    answer = await _acquire(
        link,
        (keys.positions(slot, processor), keys.log(partition), keys.registered(slot)),
        (partition, token, member, keys.group_name(processor), *known),
    )
    if answer[0] == b"STALE":
        return Stale(int(answer[1]))
    _, offset, count, lost, rolled_back = answer
    return Acquired(offset, int(count), max(0, lost), rolled_back, replaced=lost < 0)


class CommitStatus(str, Enum):
    """The coordinator's answer to a commit; see the header of ``commit.lua``."""

    OK = "OK"
    DUP = "DUP"
    FENCED = "FENCED"
    RESET = "RESET"
    REPLACED = "REPLACED"
    ROLLBACK = "ROLLBACK"


@dataclass(frozen=True, slots=True)
class Commit:
    """One partition's part of a commit: from ``previous`` to ``offset``, which ends ``count`` entries of the log."""

    partition: int
    token: int
    previous: bytes
    offset: bytes
    count: int


async def commit(
    link: Link,
    keys: StreamKeys,
    processor: str,
    member: str,
    slot_group: int,
    commits: Sequence[Commit],
    confirm: Confirmation = PRIMARY,
) -> list[tuple[CommitStatus, bytes]]:
    """Commit positions of partitions of one slot group. Returns status and stored offset for each."""
    arguments: list[Any] = [keys.group_name(processor)]
    names = [keys.positions(slot_group, processor)]
    for item in commits:
        names.append(keys.log(item.partition))
        arguments += (item.partition, f"{item.token}:{member}", item.previous, item.offset, item.count)
    answers = await _commit(link, names, arguments, confirm=confirm)
    return [(CommitStatus(status.decode()), stored) for status, stored in answers]


class AppendStatus(str, Enum):
    """What became of a batch; see the header of ``append.lua``."""

    OK = "OK"
    DUP = "DUP"
    GAP = "GAP"
    FULL = "FULL"
    SEALED = "SEALED"


_APPEND_STATUS = {status.value.encode(): status for status in AppendStatus}


class Batch(NamedTuple):
    """Entries for one partition, under one sequence of a producer, which knows that ``confirmed`` is stored.

    Where all entries have one and the same ``field`` and no other, they are given as its values.
    """

    partition: int
    producer: str
    sequence: int
    confirmed: int
    entries: Sequence[Entry] | Sequence[bytes]
    field: bytes = b""


class Appended(NamedTuple):
    """The answer for a batch: the id of its last entry, the stored sequence, or the name of the lagging processor."""

    status: AppendStatus
    detail: bytes


async def append(
    link: Link,
    keys: StreamKeys,
    slot_group: int,
    batches: Sequence[Batch],
    *,
    limit: int,
    trim: bool,
    expiry: int,
    confirm: Confirmation = PRIMARY,
) -> list[Appended]:
    """Append batches to partitions of one slot group.

    Arguments:
        limit: entries that a partition may have; 0 for any number.
        trim: drop the oldest entries even if a registered processor has not processed them.
        expiry: milliseconds after which an unused sequence is forgotten.
        confirm: where the entries must be stored.
    """
    names = [keys.registered(slot_group), keys.sealed(slot_group)]
    arguments: list[Any] = [limit, "trim" if trim else "guard", expiry, keys.positions_prefix(slot_group)]
    for batch in batches:
        names += (keys.log(batch.partition), keys.sequence(batch.partition, batch.producer))
        arguments += (batch.partition, batch.sequence, batch.confirmed, len(batch.entries), batch.field)
        if batch.field:
            arguments += batch.entries
            continue
        for entry in batch.entries:
            arguments.append(len(entry))
            arguments += entry
    answers = await _append(link, names, arguments, confirm=confirm)
    return [
        Appended(_APPEND_STATUS[status], detail if isinstance(detail, bytes) else str(detail).encode())
        for status, detail in answers
    ]


async def reset(
    link: Link,
    keys: StreamKeys,
    processor: str,
    partition: int,
    offset: bytes,
    count: int,
    *,
    expected: bytes | None = None,
) -> bytes:
    """Move a position by hand. Returns the previous one; empty if there was none.

    If that is not the ``expected`` one, or not one of this log, which has replaced another, nothing was changed.
    """
    slot = keys.slot_group(partition)
    previous: bytes = await _reset(
        link,
        (keys.positions(slot, processor), keys.log(partition)),
        (partition, keys.group_name(processor), offset, count, *(() if expected is None else (expected,))),
    )
    return previous


async def declare(link: Link, keys: StreamKeys, properties: Mapping[str, str]) -> dict[str, str]:
    """Store the properties of a stream if it has none yet. Returns all that is stored of it."""
    flat = [word for item in properties.items() for word in item]
    answer = await _declare(link, (keys.metadata,), flat)
    return {name.decode(): value.decode() for name, value in zip(answer[::2], answer[1::2], strict=True)}


async def claim(link: Link, app: str, task: str, tick: int, nonce: str) -> bool:
    """Claim one tick of a task. False if somebody else has it already, which is whoever claims with another nonce."""
    return bool(await _claim(link, (task_ticks(app),), (task, tick, nonce)))


COUNTED_AT_ONCE = 2_000
"""Entries counted by one script: about 2.7 ms of the server's time (100 bytes each, Redis 7.0.15)."""


async def count_entries(link: Link, keys: StreamKeys, partition: int, after: bytes, to: bytes) -> int:
    """How many entries of a partition there are behind ``after``, up to and including ``to``."""
    total = 0
    number: int
    while True:
        number, after = await _count(link, (keys.log(partition),), (after, to, COUNTED_AT_ONCE))
        total += number
        if number < COUNTED_AT_ONCE:
            return total


@dataclass(frozen=True, slots=True)
class Look:
    """A partition, and where a processor stands in it.

    Attributes:
        offset: the position; ``None`` if the partition was never acquired.
        count: entries of the log up to the position, counted from its first one; not exact where some were deleted.
        lost: entries that were removed before they were processed, so far.
        rollbacks: how often Redis had lost what was processed.
        length: entries there are.
        added: entries there have ever been.
        deleted: the highest entry that was deleted by hand; ``0-0`` for none.
        first: the first entry there is, or empty.
        last: the last entry that was ever added, or empty.
        following: the first entry behind the position, or empty.
    """

    offset: bytes | None
    count: int
    lost: int
    rollbacks: int
    length: int
    added: int
    deleted: bytes
    first: bytes
    last: bytes
    following: bytes


async def look(link: Link, keys: StreamKeys, processor: str, partitions: Sequence[int]) -> dict[int, Look]:
    """Look at partitions, a call per slot group."""
    found = {}
    for slot_group in sorted({keys.slot_group(partition) for partition in partitions}):
        ours = [partition for partition in partitions if keys.slot_group(partition) == slot_group]
        answers = await _look(
            link, (keys.positions(slot_group, processor), *(keys.log(partition) for partition in ours)), ours
        )
        for partition, (stored, *rest) in zip(ours, answers, strict=True):
            _, offset, count = stored.split(b"|")[:3] if stored else (b"", None, 0)
            found[partition] = Look(offset, int(count), *rest)
    return found


async def had(link: Link, logs: Sequence[str], ids: Sequence[bytes]) -> list[bool]:
    """Whether each log has an entry that was read from it, or had it; False where it is not the same log any more.

    Arguments:
        logs: their keys; all in one slot.
        ids: of the entry, per log.
    """
    return [found == 1 for found in await _had(link, logs, ids)]


async def count_loss(
    link: Link, keys: StreamKeys, processor: str, partition: int, token: int, member: str, entries: int, count: int
) -> bool:
    """Count entries that were removed from a partition that we own before we had read them.

    Arguments:
        entries: how many.
        count: of the position that they are part of: how many were processed or removed so far.

    Returns:
        False if we do not own the partition any more: what we know of it is out of date.
    """
    positions = keys.positions(keys.slot_group(partition), processor)
    answer = await _count_loss(link, (positions,), (partition, f"{token}:{member}", entries, count))
    return bool(answer == b"OK")


async def acknowledge(link: Link, keys: StreamKeys, processor: str, partition: int, lost: int, rollbacks: int) -> bool:
    """Forget counted losses and rollbacks of a partition. False if there are others than these by now."""
    positions = keys.positions(keys.slot_group(partition), processor)
    return bool(await _acknowledge(link, (positions,), (partition, lost, rollbacks)))


async def losses(link: Link, processor: str, logs: Sequence[str], cursors: Sequence[tuple[bytes, int]]) -> list[int]:
    """How many entries were removed from each log before they were read; -1 where it has replaced another.

    Arguments:
        processor: who has acquired them.
        logs: their keys; all in one slot.
        cursors: per log, the id of the last entry read, and how many entries of the log end there.
    """
    words = (StreamKeys.group_name(processor), *(word for cursor in cursors for word in cursor))
    answer: list[int] = await _losses(link, logs, words)
    return answer
