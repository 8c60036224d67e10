"""Whether something is wrong with an app, and what to do about it."""

from collections.abc import Mapping
from typing import Any

from runnel._redis import queries
from runnel._redis.groups import group_state
from runnel._redis.keys import ControlKeys
from runnel._redis.link import Link
from runnel.admin.access import connected
from runnel.admin.findings import Finding, number, ranges, where
from runnel.admin.server_check import check_clock, check_server, on_each_primary
from runnel.admin.status import PartitionStatus, ProcessorStatus, look_at
from runnel.app import App
from runnel.errors import MetadataMismatch
from runnel.settings import unknown_variables
from runnel.streams import Stream

__all__ = ["examine"]

LONG_SESSION = 60.0
"""Seconds. A worker that is frozen or cut off keeps its partitions for so long."""

NEARLY_FULL = 0.9
"""Of ``partition_size``."""


async def examine(app: App, names: Mapping[str, str] | None = None) -> list[Finding]:
    """Look for what is wrong: the server, settings, streams, workers, partitions. Changes nothing.

    Arguments:
        app: the app.
        names: what to call processors in commands, such as ``{"printer": "example:printer"}``; by default, their names.

    Returns:
        The findings, what must be done first.

    Raises:
        RedisUnavailable: Redis cannot be reached.
    """
    called = dict(names or {})
    async with connected(app) as link:
        found = [*await on_each_primary(link, check_server, check_clock), *_settings(app), *_variables()]
        for stream in app.streams.values():
            found += await _stream(link, app, stream, called)
    return sorted(found, key=lambda finding: not finding.urgent)


def _events(n: int) -> str:
    return number(n, "event")


def _variables() -> list[Finding]:
    return [
        Finding(f"The variable {name} is no setting of Runnel.{hint}", "Correct its name, or remove it.")
        for name, hint in unknown_variables().items()
    ]


def _settings(app: App) -> list[Finding]:
    settings, found = app.settings, []
    if settings.session_timeout > LONG_SESSION:
        found.append(
            Finding(
                f"session_timeout is {settings.session_timeout:g} s: a worker that freezes or is cut off keeps its "
                "partitions for so long.",
                "The default of 10 s is enough; handlers may block for longer than that.",
                urgent=False,
            )
        )
    for name, grace in {processor.name: processor.grace_period for processor in app.processors.values()}.items():
        if grace < 2 * settings.heartbeat_interval:
            found.append(
                Finding(
                    f'grace_period of "{name}" is {grace:g} s, less than two heartbeats: partitions may be taken from '
                    "workers that have not even heard that they are to hand them back, and events repeat.",
                    f"Set it to {2 * settings.heartbeat_interval:g} s at least, and to more than an event takes.",
                )
            )
    found += [
        Finding(
            f'Stream "{stream.name}" drops its oldest events when a partition is full (on_full="trim"), processed or '
            "not.",
            'Use on_full="wait" if they matter.',
            urgent=False,
        )
        for stream in app.streams.values()
        if stream.options.limits.on_full == "trim"
    ]
    return found


async def _stream(link: Link, app: App, stream: Stream[Any], called: Mapping[str, str]) -> list[Finding]:
    try:
        generations = await stream.check(link)
        if generations is None:
            return []  # never used
    except MetadataMismatch as error:
        return [Finding(str(error), "Until then, nothing can be said about its processors.")]
    if address := generations.moved or generations.moving:
        cure = "Use that server: redis_url in App(...), RUNNEL_REDIS_URL, or --redis-url."
        if not generations.moved:
            cure = "If nobody moves it any more, finish that: runnel stream migrate with --to and --execute."
        return [Finding(f'The stream "{stream.name}" is moved to {address}.', cure)]
    found = []
    declared = [name for name, processor in app.processors.items() if processor.stream is stream]
    for name in await queries.registered_processors(link, stream.keys):
        if name not in declared:
            prefix = next((call.rpartition(":")[0] for call in called.values()), "MODULE")
            found.append(
                Finding(
                    f'"{name}" is registered on "{stream.name}", but the app does not have it: what it has not '
                    "processed is kept, and when partitions are full of that, nothing can be sent.",
                    f"If it is gone for good: runnel processor delete {prefix}:{name}",
                )
            )
    for name in declared:
        status = await look_at(link, stream, name, generations)
        call = called.get(name, name)
        found += _workers(app, status)
        found += await _sessions(link, app, status)
        for partition in status.partitions:
            found += _partition(stream, status, partition, call)
        found += _losses(status, call)
        if status.paused is not None:
            cure = f"When it may go on: runnel processor resume {call}"
            found.append(Finding(f'"{name}" was paused by {status.paused_by}.', cure, urgent=False))
    return found


def _workers(app: App, status: ProcessorStatus) -> list[Finding]:
    name = status.name
    silent = [member for member in status.members if member.state == "silent"]
    found = [
        Finding(
            f'The worker {member.name} of "{name}" has been silent for {member.silent:.0f} s.',
            "If it has crashed, start another one: it takes over. If it is frozen or cut off, end it.",
        )
        for member in silent
    ]
    if not status.members and status.lag:
        found.append(
            Finding(f'No worker runs "{name}", with {_events(status.lag)} waiting.', "Start one: runnel worker.")
        )
    unowned = [partition.partition for partition in status.partitions if partition.state == "unowned"]
    if unowned and len(silent) < len(status.members):
        found.append(
            Finding(
                f'"{name}": nobody owns the partitions {ranges(unowned)}.',
                "They are being moved if this goes away within the grace period; if not, see the workers' logs.",
            )
        )
    return found


async def _sessions(link: Link, app: App, status: ProcessorStatus) -> list[Finding]:
    group = await group_state(link, ControlKeys.of(app.name, status.stream, status.name, status.generation))
    ours = app.settings.session_timeout
    other = {member.name: member.session for member in group.members if abs(member.session - ours) > 0.001}
    return [
        Finding(
            f'The worker {name} of "{status.name}" runs with session_timeout {session:g} s, this app says {ours:g} s.',
            "Restart the workers with the same settings.",
            urgent=False,
        )
        for name, session in other.items()
    ]


def _partition(stream: Stream[Any], status: ProcessorStatus, partition: PartitionStatus, call: str) -> list[Finding]:
    name, at, found = status.name, partition.partition, []
    if partition.state == "quarantined":
        found.append(
            Finding(
                f'"{name}" is quarantined in partition {at}, with {_events(partition.lag)} waiting.',
                f"See runnel quarantine show {call} --partition {at}; then retry or skip.",
            )
        )
    if partition.stall is not None:
        found.append(
            Finding(
                f'"{name}" has made no progress in partition {at} for {partition.stall.seconds:.0f} s, with '
                f"{_events(partition.lag)} waiting: {partition.stall.doing}.",
                f"See the log of {partition.owner}. If it is not your code that takes so long, restart that worker.",
            )
        )
    size = stream.options.limits.partition_size
    if size and partition.lag >= NEARLY_FULL * size:
        found.append(
            Finding(
                f'Partition {at} of "{stream.name}" is full of events that "{name}" has not processed '
                f"({partition.lag:,} of {size:,}): producers wait, or fail.",
                f"Start more workers, raise partition_size, or let it skip: runnel processor reset {call}.",
            )
        )
    return found


def _losses(status: ProcessorStatus, call: str) -> list[Finding]:
    name, found = status.name, []
    known = f"When you know why: runnel processor acknowledge {call}"
    if lost := [partition.partition for partition in status.partitions if partition.lost]:
        found.append(
            Finding(
                f'"{name}" has lost {_events(status.lost)} of {where(lost)}: they were removed before it had processed '
                "them.",
                'Nothing brings them back. Look for on_full="trim", for XTRIM or XDEL by hand, for an evicting server. '
                f"{known}",
                urgent=False,
            )
        )
    if rolled_back := [partition.partition for partition in status.partitions if partition.rollbacks]:
        times = number(status.rollbacks, "time")
        found.append(
            Finding(
                f'Redis has lost confirmed data of "{name}" in {where(rolled_back)}, {times}.',
                f"Look for restarts and fail-overs; appendfsync always, or replicas, keep more. {known}",
                urgent=False,
            )
        )
    return found
