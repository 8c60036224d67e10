"""``runnel stream``: how a stream is laid out, and laying it out anew."""

import asyncio
import time
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from runnel.admin import (
    Description,
    GenerationDescription,
    Migration,
    Remaining,
    begin_migration,
    describe_stream,
    move_stream,
    plan_migration,
    plan_move,
    purge_generations,
    watch_migration,
)
from runnel.app import App
from runnel.cli.targets import RedisURL, app_of, load
from runnel.cli.terminal import AsJSON, Execute, notes, number, output, reporting, run, show_json, show_table
from runnel.errors import TargetError
from runnel.streams import Stream

__all__ = ["stream_app"]

stream_app = typer.Typer(no_args_is_help=True)

SAY_AGAIN = 10.0
"""Seconds after which it is said how far a migration is, although only numbers have changed."""

StreamTarget = Annotated[str, typer.Argument(help="module:attribute of the stream, such as example:orders.")]


@stream_app.callback()
def _group() -> None:
    """Look after a stream."""


@stream_app.command()
@reporting
def describe(stream: StreamTarget, as_json: AsJSON = False, redis_url: RedisURL = None) -> None:
    """Show how a stream is laid out: partitions, slot groups, hash slots, and the positions of its processors."""
    chosen: Stream[Any] = load(stream, Stream, "runnel stream describe", redis_url=redis_url)
    found = run(describe_stream(app_of(chosen), chosen))
    if as_json:
        show_json(asdict(found))
        return
    output.print(
        f"{found.stream}   hasher {found.hasher}, format {found.format}, metadata {found.metadata}", markup=False
    )
    if found.moved:
        output.print(f"moved to {found.moved}: producers and workers have to use that server", markup=False)
    for generation in found.generations:
        _show_generation(found, generation)


def _show_generation(found: Description, generation: GenerationDescription) -> None:
    groups = number(generation.slot_groups, "slot group")
    in_use = generation.in_use and not found.moved
    rest = "producers append here" if in_use else "sealed: nothing is appended any more"
    at = [name for name, where in found.processors.items() if where == generation.generation]
    readers = f", processed by {', '.join(at)}" if at else ""
    partitions = number(generation.partition_count, "partition")
    output.print(f"\ngeneration {generation.generation}   {partitions} in {groups}; {rest}{readers}", markup=False)
    headings = ("partition", "slot group", "slot", "entries", "last entry", *found.processors, "log")
    show_table(
        headings,
        [
            (
                str(one.partition),
                str(one.slot_group),
                str(one.slot),
                f"{one.entries:,}",
                one.last or "none",
                *(one.positions[name] or "none" for name in found.processors),
                one.key,
            )
            for one in generation.partitions
        ],
        right=headings[:4],
    )


@stream_app.command()
@reporting
def migrate(
    stream: StreamTarget,
    partitions: Annotated[int | None, typer.Option(help="How many partitions it shall have.")] = None,
    slot_groups: Annotated[
        int | None,
        typer.Option(
            "--slot-groups", help="Over how many slot groups they shall be spread; of use on a Redis Cluster."
        ),
    ] = None,
    to: Annotated[str | None, typer.Option("--to", help="URL of another server, to move the stream there.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait until all processors have gone over to the new partitions.")
    ] = True,
    purge: Annotated[bool, typer.Option("--purge", help="Remove the old partitions when they are processed.")] = False,
    execute: Execute = False,
    as_json: AsJSON = False,
    redis_url: RedisURL = None,
) -> None:
    """Divide a stream anew, or move it to another server. Shows what would happen; --execute does it.

    Producers and workers go on meanwhile, and need no restart. The old partitions are sealed, and producers go over to
    the new ones; a processor begins those when it has processed all of the old ones, so every key keeps its order. What
    is quarantined or paused holds that up.

    With --to, it is moved to another server, with its dead letters: producers wait meanwhile, and workers finish the
    event in progress. Then start them again with the new address.

    Interrupted, it can be run again: it goes on where it was.
    """
    chosen: Stream[Any] = load(stream, Stream, "runnel stream migrate", redis_url=redis_url)
    app = app_of(chosen)
    if to is not None:
        if partitions is not None or slot_groups is not None or purge:
            raise TargetError("Move it first, and divide it anew then: --to goes with none of the other options.")
        _move(app, chosen, to, execute=execute, as_json=as_json)
        return
    plan = run(plan_migration(app, chosen, partition_count=partitions, slot_groups=slot_groups))
    if not as_json:
        _show_plan(plan)
    if not execute:
        if as_json:
            show_json(asdict(plan) | {"executed": False, "purged": []})
        elif plan.needed or (purge and plan.earlier):
            notes.print("Nothing was changed. Add --execute to do it.", markup=False)
        elif partitions is None and slot_groups is None:
            notes.print("Say what shall be different: --partitions, --slot-groups or --to.", markup=False)
        return
    purged = run(_execute(app, chosen, plan, wait=wait, purge=purge, quiet=as_json))
    if as_json:
        show_json(asdict(plan) | {"executed": True, "purged": purged})
        return
    if purged:
        notes.print(f"Removed: the partitions of generation {', '.join(map(str, purged))}.", markup=False)
    elif purge:
        notes.print("Nothing was removed.", markup=False)
    if plan.needed:
        count = plan.after.partition_count
        say = f"; say partition_count={count} in the code when it is deployed the next time"
        rest = "" if count == plan.before.partition_count else say
        notes.print(f"Done. Running producers and workers go on{rest}.", markup=False)


async def _execute(
    app: App, stream: Stream[Any], plan: Migration, *, wait: bool, purge: bool, quiet: bool
) -> list[int]:
    await begin_migration(app, stream, plan)
    if wait:
        said: object = None
        again = 0.0
        try:
            async for left in watch_migration(app, stream):
                reasons = [replace(one, events=0) for one in left]
                if not quiet and (reasons != said or time.monotonic() >= again):
                    said, again = reasons, time.monotonic() + SAY_AGAIN
                    notes.print(_progress(left), markup=False)
        except asyncio.CancelledError:  # Ctrl-C
            notes.print("It goes on without this command: run it again to see how far it is.", markup=False)
            raise
    return [one.number for one in await purge_generations(app, stream)] if purge else []


def _move(app: App, stream: Stream[Any], to: str, *, execute: bool, as_json: bool) -> None:
    plans = run(plan_move(app, stream, to))
    for plan in () if as_json else plans:
        words = [number(plan.entries, "event")]
        if plan.processors:
            words.append(f"processed by {', '.join(plan.processors)}")
        if plan.workers:
            words.append(f"{number(len(plan.workers), 'worker')} will let go of it")
        output.print(
            f'"{plan.stream}" {"was moved" if plan.moved else "->"} {plan.to}: {"; ".join(words)}', markup=False
        )
    if execute:
        run(_carry_out(app, stream, to, quiet=as_json))
    if as_json:
        show_json([asdict(plan) | {"executed": execute} for plan in plans])
    elif not execute:
        notes.print("Nothing was changed. Add --execute to do it.", markup=False)
    else:
        notes.print("Done. Start producers and workers again with the new address.", markup=False)
        plan = plans[0]
        if plan.slot_groups < plan.usual:
            notes.print(
                f"It is in {number(plan.slot_groups, 'slot group')} there, where a new stream would have {plan.usual}. "
                f"To spread it over the servers, migrate it there with --slot-groups {plan.usual}.",
                markup=False,
            )


async def _carry_out(app: App, stream: Stream[Any], to: str, *, quiet: bool) -> None:
    said = None
    try:
        async for moved in move_stream(app, stream, to):
            if not quiet and moved != said:
                said = moved
                notes.print(f"{moved.stream}: {moved.step}", markup=False)
    except asyncio.CancelledError:  # Ctrl-C
        notes.print("Not finished, and nothing can be sent until it is: run it again.", markup=False)
        raise


def _show_plan(plan: Migration) -> None:
    before, after = plan.before, plan.after
    if plan.needed:
        output.print(
            f'"{plan.stream}": generation {before.number}, {number(before.partition_count, "partition")} in '
            f"{number(before.slot_groups, 'slot group')} -> generation {after.number}, "
            f"{number(after.partition_count, 'partition')} in {number(after.slot_groups, 'slot group')}",
            markup=False,
        )
    else:
        output.print(
            f'"{plan.stream}" has {number(before.partition_count, "partition")} in '
            f"{number(before.slot_groups, 'slot group')} already (generation {before.number})",
            markup=False,
        )
    for one in plan.remaining:
        output.print(f"  {_in_words(one)}", markup=False)


def _progress(left: tuple[Remaining, ...]) -> str:
    if not left:
        return "All processors have gone over."
    return "Waiting: " + "; ".join(map(_in_words, left))


def _in_words(one: Remaining) -> str:
    """One processor, and what may hold it up."""
    what = f'"{one.processor}" has {number(one.events, "event")} to process before that'
    if one.paused:
        what += ", and is paused"
    if one.quarantined:
        what += f", and is quarantined in partition {', '.join(map(str, one.quarantined))}"
    if not one.workers:
        what += ", and nobody runs it"
    return what
