"""Commands that look: ``status``, ``lag`` and ``tail``."""

import json
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from runnel.admin import PartitionStatus, ProcessorStatus, Status, key_of, status_of, tail_of, watch_status
from runnel.admin.findings import ranges, where
from runnel.app import App
from runnel.cli.sending import StreamTarget
from runnel.cli.targets import RedisURL, app_of, load
from runnel.cli.terminal import (
    INTERVAL,
    AsJSON,
    Partitions,
    Watch,
    notes,
    number,
    output,
    reporting,
    rounded,
    run,
    show_json,
    show_table,
    span,
    watching,
)
from runnel.errors import DecodeError
from runnel.events import Event
from runnel.instruments import Announcement, RedisLost, RedisRecovered
from runnel.streams import Stream

__all__ = ["AppTarget", "event_data", "event_text", "lag", "status", "tail"]

AppTarget = Annotated[
    str | None, typer.Argument(metavar="TARGET", help="module:attribute of the app, such as example:app.")
]

OVER = 1.0
"""Seconds between the two looks that rates are taken from."""


@reporting
def status(target: AppTarget = None, watch: Watch = False, as_json: AsJSON = False, redis_url: RedisURL = None) -> None:
    """See what runs: processors, workers, lag, and what needs attention.

    Takes a second, for the rates. Lag is in events, and in how long the oldest of them has been waiting.
    """
    app = load(target, App, "runnel status", redis_url=redis_url)

    def show(found: Status) -> None:
        if as_json:
            show_json(rounded(_status_data(found)), lines=watch)
        else:
            _show_status(found)

    if watch:
        run(watching(lambda: watch_status(app, INTERVAL), show))
    show(run(status_of(app, over=OVER)))


@reporting
def lag(
    target: AppTarget = None,
    fail_over: Annotated[
        int | None, typer.Option(help="Exit status 1 if a processor has more events waiting.", min=0)
    ] = None,
    watch: Watch = False,
    as_json: AsJSON = False,
    redis_url: RedisURL = None,
) -> None:
    """See how far behind processors are, by partition.

    Computed from positions and logs; right also after trimming, deleted entries and moved positions.
    """
    app = load(target, App, "runnel lag", redis_url=redis_url)

    def show(found: Status) -> None:
        if as_json:
            show_json(rounded([_processor_data(processor) for processor in found.processors]), lines=watch)
        else:
            _show_lag(found)

    if watch:
        run(watching(lambda: watch_status(app, INTERVAL), show))
    found = run(status_of(app))
    show(found)
    behind = [p for p in found.processors if fail_over is not None and p.lag > fail_over]
    for processor in behind:
        waits = f"{number(processor.lag, 'event')} waiting, more than {fail_over:,}"
        notes.print(f'"{processor.name}" has {waits}.', style="red", markup=False)
    if behind:
        raise typer.Exit(1)


@reporting
def tail(
    stream: StreamTarget,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what is sent from now on.")] = False,
    last: Annotated[
        int | None,
        typer.Option("-n", "--number", help="The last so many (10); with --from, so many from there.", min=0),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", help="earliest, latest, an id, a time (UTC unless it has a zone), or -5m for ago."),
    ] = None,
    partition: Partitions = None,
    key: Annotated[str | None, typer.Option(help="Only events with this partition key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    redis_url: RedisURL = None,
) -> None:
    """See the events of a stream, decoded, those of a partition in the order of sending. Processes nothing.

    With -f, an outage of Redis is waited for.
    """
    of = load(stream, Stream, "runnel tail", redis_url=redis_url)
    wanted = 10 if last is None and start is None else last
    shown = run(_tail(of, wanted, start, partition, key, follow, as_json))
    if not shown and not follow:
        notes.print(f'Nothing to show of "{of.name}".', markup=False)


async def _tail(
    stream: Stream[Any],
    wanted: int | None,
    start: str | None,
    partitions: Sequence[int] | None,
    key: str | None,
    follow: bool,
    as_json: bool,
) -> int:
    shown = 0
    app = app_of(stream)
    app.instruments.subscribe(_outages())
    # Closed here, and not with the event loop: it has connections, and showing may fail (`| head`).
    async with aclosing(
        tail_of(app, stream, number=wanted, start=start, partitions=partitions, key=key, follow=follow)
    ) as events:
        async for event in events:
            shown += 1
            if as_json:
                show_json(event_data(stream, event), lines=True)
            else:
                moment = _moment(event).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
                output.print(f"{event.id}  {event.partition:>3}  {moment}Z  {event_text(event)}", markup=False)
    return shown


def _outages() -> Callable[[Announcement], None]:
    """Says when Redis is away, and when it is back, however many connections that concerns."""
    away = 0

    def hear(announcement: Announcement) -> None:
        nonlocal away
        match announcement:
            case RedisLost(error=error):
                away += 1
                if away == 1:
                    notes.print(getattr(error, "what", str(error)), style="red", markup=False)
            case RedisRecovered():
                away -= 1
                if away == 0:
                    notes.print("Redis answers again.", markup=False)

    return hear


# Events


def event_text(event: Event[Any], *, headers: bool = True) -> str:
    """A record as JSON, or the fields of what is none; the headers behind it, if there are any."""
    try:
        text: str = event.record.model_dump_json()
    except DecodeError:
        text = f"not a record: {event.data!r}"
    if not headers or not event.headers:
        return text
    return f"{text}  {json.dumps({name: value.decode(errors='replace') for name, value in event.headers.items()})}"


def event_data(stream: Stream[Any], event: Event[Any]) -> dict[str, Any]:
    """An event for programs. NaN and infinities, which JSON does not have, are strings, as pydantic reads them."""
    try:
        record = json.loads(event.record.model_dump_json(), parse_constant=str)
        error = None
    except DecodeError as raised:
        record, error = None, str(raised)
    return {
        "id": event.id,
        "partition": event.partition,
        "time": _moment(event).isoformat(timespec="milliseconds"),
        "key": key_of(stream, event),
        "record": record,
        "error": error,
        "headers": {name: value.decode(errors="replace") for name, value in event.headers.items()},
    }


def _moment(event: Event[Any]) -> datetime:
    return datetime.fromtimestamp(int(event.id.partition("-")[0]) / 1000, UTC)


# Status


def _status_data(found: Status) -> dict[str, Any]:
    return asdict(found) | {"processors": [_processor_data(processor) for processor in found.processors]}


def _processor_data(processor: ProcessorStatus) -> dict[str, Any]:
    sums = {"lag": processor.lag, "oldest": processor.oldest, "lost": processor.lost, "rollbacks": processor.rollbacks}
    return asdict(processor) | sums


def _show_status(found: Status) -> None:
    at = datetime.fromtimestamp(found.at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    silent = {member.name for p in found.processors for member in p.members if member.state == "silent"}
    workers = number(len(found.workers), "worker") + (f" ({len(silent)} silent)" if silent else "")
    output.print(f'app "{found.app}"   {found.server}   {workers}   {at}', markup=False)
    if found.streams:
        output.print()
        show_table(
            ("stream", "partitions", "entries"),
            [
                (s.name, str(s.partition_count), "never used" if s.entries is None else f"{s.entries:,}")
                for s in found.streams
            ],
            right=("partitions", "entries"),
        )
    if found.processors:
        output.print()
        show_table(
            ("processor", "stream", "state", "owned", "lag", "oldest", "sent/s", "processed/s", "lost"),
            [_processor_row(processor) for processor in found.processors],
            right=("owned", "lag", "oldest", "sent/s", "processed/s", "lost"),
        )
    members = [(processor, member) for processor in found.processors for member in processor.members]
    if members:
        output.print()
        show_table(
            ("worker", "processor", "state", "heard of", "partitions"),
            [
                (member.name, processor.name, member.state, f"{span(member.silent)} ago", ranges(member.partitions))
                for processor, member in members
            ],
            right=("heard of",),
        )
    attention = [f'"{s.name}" is moved to {s.moved}.' for s in found.streams if s.moved]
    attention += [line for processor in found.processors for line in _attention(processor)]
    if attention:
        output.print()
        for line in attention:
            output.print(f"! {line}", style="yellow", markup=False)


def _processor_row(processor: ProcessorStatus) -> tuple[str, ...]:
    owned = sum(partition.owner is not None for partition in processor.partitions)
    quarantined = sum(partition.state == "quarantined" for partition in processor.partitions)
    if not processor.declared:
        state = "not in the app"
    elif processor.paused is not None:
        state = "paused"
    elif not processor.members:
        state = "no worker"
    elif all(member.state == "silent" for member in processor.members):
        state = "silent"
    else:
        state = f"{quarantined} quarantined" if quarantined else "running"
    rate = processor.rate
    return (
        processor.name,
        processor.stream,
        state,
        f"{owned}/{len(processor.partitions)}" if processor.partitions else "-",
        f"{processor.lag:,}",
        _age(processor.lag, processor.oldest),
        "-" if rate is None else f"{rate.sent:,.0f}",
        "-" if rate is None else f"{rate.processed:,.0f}",
        f"{processor.lost:,}",
    )


def _attention(processor: ProcessorStatus) -> list[str]:
    """What a person should look at, in words."""
    name = processor.name
    lines = []
    if processor.paused is not None:
        nobody = "" if processor.members else " No worker runs it."
        lines.append(f'"{name}" was paused {span(processor.paused)} ago by {processor.paused_by}.{nobody}')
    if not processor.declared:
        lines.append(
            f'"{name}" is registered on "{processor.stream}", but the app does not have it. See runnel doctor.'
        )
    if processor.later:
        lines.append(_waiting_later(processor))
    for member in processor.members:
        if member.state == "silent":
            has = f" It has {where(member.partitions)}." if member.partitions else ""
            lines.append(f'"{name}": the worker {member.name} is silent.{has}')
    if processor.members and (unowned := _those(processor, lambda p: p.state == "unowned")):
        lines.append(f'"{name}": nobody owns {where(unowned)}.')
    if failed := _those(processor, lambda p: p.state == "quarantined"):
        lines.append(f'"{name}" is quarantined in {where(failed)}. See runnel quarantine list.')
    for partition in processor.partitions:
        if slow := partition.in_progress:
            event = f"the event {slow.event} has been in progress for {span(slow.seconds)}"
            lines.append(f'"{name}" partition {partition.partition}: {event}.')
        if stall := partition.stall:
            since = f"has made no progress for {span(stall.seconds)}"
            lines.append(f'"{name}" partition {partition.partition} {since}: {stall.doing}.')
    if lossy := _those(processor, lambda p: p.lost > 0):
        lost = number(processor.lost, "event")
        lines.append(f'"{name}" has lost {lost} of {where(lossy)} to trimming or deletion. See runnel doctor.')
    if rolled_back := _those(processor, lambda p: p.rollbacks > 0):
        times = number(processor.rollbacks, "time")
        lines.append(f'"{name}": Redis has lost confirmed data in {where(rolled_back)}, {times}. See runnel doctor.')
    return lines


def _waiting_later(processor: ProcessorStatus) -> str:
    """That its stream was divided anew, and it is not there yet."""
    return (
        f'"{processor.name}" is at generation {processor.generation} of "{processor.stream}", which was divided anew: '
        f"{number(processor.later, 'event')} in later partitions wait until all of that is processed."
    )


def _those(processor: ProcessorStatus, are: Callable[[PartitionStatus], bool]) -> list[int]:
    """The numbers of some of the partitions, so that one line tells of many."""
    return [partition.partition for partition in processor.partitions if are(partition)]


def _show_lag(found: Status) -> None:
    rows = [_lag_row(processor, partition) for processor in found.processors for partition in processor.partitions]
    if rows:
        show_table(
            ("processor", "partition", "lag", "oldest", "position", "state", "owned for", "owner", "in progress"),
            rows,
            right=("partition", "lag", "oldest", "owned for"),
        )
    for processor in found.processors:
        if processor.later:
            notes.print(_waiting_later(processor), markup=False)
        if not processor.partitions:
            notes.print(f'"{processor.name}": its stream "{processor.stream}" was never used.', markup=False)
    if not found.processors:
        notes.print(f'The app "{found.app}" has no processors.', markup=False)


def _lag_row(processor: ProcessorStatus, partition: PartitionStatus) -> tuple[str, ...]:
    slow = partition.in_progress
    return (
        processor.name,
        str(partition.partition),
        f"{partition.lag:,}",
        _age(partition.lag, partition.oldest),
        partition.position or "none",
        partition.state,
        "-" if partition.owned is None else span(partition.owned),
        partition.owner or "-",
        "-" if slow is None else f"{slow.event} for {span(slow.seconds)}",
    )


def _age(lag: int, seconds: float) -> str:
    return span(seconds) if lag else "-"
