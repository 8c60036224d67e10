"""What the control slot of a processor holds, as values. Nothing here changes it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runnel._redis.keys import ControlKeys
from runnel._redis.link import Link
from runnel._redis.scripts import ALL, STALLED

__all__ = ["GroupState", "MemberState", "Ownership", "Parked", "Slow", "group_state", "server_time"]


@dataclass(frozen=True, slots=True)
class MemberState:
    """A member: seconds since its last heartbeat, its session in seconds, whether it is connected, or is leaving."""

    name: str
    silent: float
    session: float
    connected: bool
    draining: bool


@dataclass(frozen=True, slots=True)
class Ownership:
    """Who owns a partition, under which token; ``revoked`` if it is to be handed back."""

    member: str
    token: int
    revoked: bool


@dataclass(frozen=True, slots=True)
class Parked:
    """Why something is not processed now. ``raw`` is the stored value, to be compared with when it is changed."""

    raw: bytes
    member: str
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Slow:
    """What has gone on since ``since`` (seconds of the server's clock) under a token."""

    token: int
    what: str
    since: float


@dataclass(frozen=True, slots=True)
class GroupState:
    """The group of a processor.

    Attributes:
        members: in the order in which they joined.
        owners: by partition.
        quarantined: by partition.
        paused: why the whole processor is paused; ``None`` if it is not.
        slow: the event that has been in progress for long, by partition.
        stalled: what those partitions do that make no progress, by partition.
    """

    members: tuple[MemberState, ...]
    owners: Mapping[int, Ownership]
    quarantined: Mapping[int, Parked]
    paused: Parked | None
    slow: Mapping[int, Slow]
    stalled: Mapping[int, Slow]


async def server_time(link: Link) -> float:
    """Seconds since 1970, by the server's clock."""
    seconds, microseconds = await link.call("TIME")
    return int(seconds) + int(microseconds) / 1e6


async def group_state(link: Link, keys: ControlKeys) -> GroupState:
    """Read the state of a group. Made of several looks, so two parts of it may be some milliseconds apart."""
    now, clock = await link.call("HMGET", keys.group, "now", "clock")
    members = await _hash(link, keys.members)
    owners = await _hash(link, keys.owners)
    parked = {field: _parked(value) for field, value in (await _hash(link, keys.parked)).items()}
    slow = {field: _slow(value) for field, value in (await _hash(link, keys.slow)).items()}
    connected = await link.call("PUBSUB", "SHARDNUMSUB", *(keys.wake(name) for name in members)) if members else []
    # The logical clock stands still between two calls, so what has passed since the last one is the server's time.
    since_call = max(0.0, await server_time(link) * 1000 - int(now or 0))
    found = []
    for (name, value), number in zip(members.items(), connected[1::2], strict=True):
        joined, beat, session, state, _ = value.decode().split("|")
        silent = (int(clock or 0) - int(beat) + since_call) / 1000
        found.append((int(joined), MemberState(name, silent, int(session) / 1000, int(number) > 0, state == "D")))
    return GroupState(
        tuple(member for _, member in sorted(found, key=lambda item: item[0])),
        {int(p): _ownership(value) for p, value in owners.items()},
        {int(p): mark for p, mark in parked.items() if p != ALL and mark.member in members},
        parked.get(ALL),
        {int(p): note for p, note in slow.items() if not p.startswith(STALLED)},
        {int(p.removeprefix(STALLED)): note for p, note in slow.items() if p.startswith(STALLED)},
    )


async def _hash(link: Link, name: str) -> dict[str, bytes]:
    flat = await link.call("HGETALL", name)
    return {field.decode(): value for field, value in zip(flat[::2], flat[1::2], strict=True)}


def _ownership(value: bytes) -> Ownership:
    member, token, revoked = value.decode().rsplit("|", 2)
    return Ownership(member, int(token), revoked != "-1")


def _parked(value: bytes) -> Parked:
    member, _, details = value.decode().partition("|")
    return Parked(value, member, json.loads(details))


def _slow(value: bytes) -> Slow:
    token, what, since = value.decode().split("|")
    return Slow(int(token), what, int(since) / 1000)
