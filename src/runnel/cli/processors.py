"""``runnel processor``: look after a processor."""

from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Annotated, Any

import typer

from runnel._core.points import duration, moment
from runnel.admin import (
    Shift,
    acknowledge_losses,
    apply_reset,
    delete_processor,
    pause_processor,
    plan_deletion,
    plan_reset,
    resume_processor,
)
from runnel.app import App
from runnel.cli.targets import RedisURL, app_of, load, load_or_name
from runnel.cli.terminal import (
    AsJSON,
    Execute,
    Partitions,
    notes,
    number,
    output,
    reporting,
    run,
    show_json,
    show_table,
)
from runnel.errors import ProcessorInUse, TargetError
from runnel.processors import Processor

__all__ = ["ProcessorTarget", "processor_app"]

processor_app = typer.Typer(no_args_is_help=True)

ProcessorTarget = Annotated[str, typer.Argument(metavar="PROCESSOR", help="module:attribute, such as example:printer.")]


@processor_app.callback()
def _group() -> None:
    """Look after a processor."""


@processor_app.command()
@reporting
def reset(
    processor: ProcessorTarget,
    start: Annotated[
        str | None, typer.Option(help="Id of the first event to process: 0 the first there is, $ only those to come.")
    ] = None,
    to_earliest: Annotated[bool, typer.Option("--to-earliest", help="The first event there is.")] = False,
    to_latest: Annotated[bool, typer.Option("--to-latest", help="Only events yet to come.")] = False,
    to_datetime: Annotated[
        str | None, typer.Option(help="The first event sent then, such as 2026-01-31T12:00; UTC unless it has a zone.")
    ] = None,
    by_duration: Annotated[str | None, typer.Option(help="The first event of the last 5m, 1h30m, 2d ...")] = None,
    shift_by: Annotated[
        int | None, typer.Option(help="So many events per partition forwards, or backwards if negative.")
    ] = None,
    partition: Partitions = None,
    execute: Execute = False,
    as_json: AsJSON = False,
    redis_url: RedisURL = None,
) -> None:
    """Let a processor go on from another place. Shows what would happen; --execute does it.

    Workers may run meanwhile: they finish the event in progress and go on from the new place. What is quarantined or
    paused stays so.
    """
    places: list[str | Shift] = [
        *([start] if start is not None else []),
        *(["earliest"] if to_earliest else []),
        *(["latest"] if to_latest else []),
        *([moment(to_datetime).decode()] if to_datetime is not None else []),
        *([f"-{duration(by_duration):.0f}s"] if by_duration is not None else []),
        *([Shift(shift_by)] if shift_by is not None else []),
    ]
    if len(places) != 1:
        raise TargetError(
            ("Missing option '--start'. " if not places else "Only one place at a time. ")
            + "Say where to go on: --start ID, --to-earliest, --to-latest, --to-datetime TIME, --by-duration 5m or "
            "--shift-by -10."
        )
    chosen = load(processor, Processor, "runnel processor reset", redis_url=redis_url)
    app: App = app_of(chosen.stream)
    resets = run(plan_reset(app, chosen.name, places[0], partition))
    if execute:
        run(apply_reset(app, chosen.name, resets))
    if as_json:
        show_json([asdict(item) for item in resets])
    elif resets:
        headings = ("partition", "position", "new position", "waiting", "will wait")
        show_table(
            headings,
            [
                (str(item.partition), item.position or "none", item.offset, f"{item.lag:,}", f"{item.new_lag:,}")
                for item in resets
            ],
            right=headings,
        )
    if not resets:
        notes.print(f'Nothing was ever sent to "{chosen.stream.name}" there, so there is nothing to do.', markup=False)
        return
    waiting = number(sum(item.new_lag for item in resets), "event")
    if execute:
        notes.print(f'Done: "{chosen.name}" goes on from there, with {waiting} to process.', markup=False)
    else:
        notes.print(f"Nothing was changed. Add --execute to do it: {waiting} will be processed.", markup=False)


@processor_app.command()
@reporting
def pause(processor: ProcessorTarget, redis_url: RedisURL = None) -> None:
    """Stop processing, without stopping workers.

    Each partition finishes and commits the event in progress, and stays with its worker. Workers that start later do
    not begin. Producers go on, until partitions are full.
    """
    name, changed = _switch(processor, "pause", pause_processor, redis_url)
    done = f'Paused: "{name}" goes on with `runnel processor resume {processor}`.'
    notes.print(done if changed else f'"{name}" was paused already.', markup=False)


@processor_app.command()
@reporting
def resume(processor: ProcessorTarget, redis_url: RedisURL = None) -> None:
    """Let a paused processor go on from where it was."""
    name, changed = _switch(processor, "resume", resume_processor, redis_url)
    notes.print(f'Resumed: "{name}" goes on.' if changed else f'"{name}" was not paused.', markup=False)


def _switch(
    target: str, command: str, switch: Callable[[App, str], Coroutine[Any, Any, bool]], redis_url: str | None
) -> tuple[str, bool]:
    """Pause or resume. Returns the processor's name, and whether that changed anything."""
    chosen = load(target, Processor, f"runnel processor {command}", redis_url=redis_url)
    return chosen.name, run(switch(app_of(chosen.stream), chosen.name))


@processor_app.command()
@reporting
def acknowledge(
    processor: ProcessorTarget, partition: Partitions = None, as_json: AsJSON = False, redis_url: RedisURL = None
) -> None:
    """Take note of lost events and rollbacks: status and doctor count from zero again. Nothing comes back by that."""
    chosen = load(processor, Processor, "runnel processor acknowledge", redis_url=redis_url)
    found = run(acknowledge_losses(app_of(chosen.stream), chosen.name, partition))
    if as_json:
        show_json([asdict(one) for one in found])
        return
    if found:
        headings = ("partition", "lost events", "rollbacks")
        show_table(
            headings, [(str(one.partition), f"{one.lost:,}", f"{one.rollbacks:,}") for one in found], right=headings
        )
    notes.print(
        f'Acknowledged: "{chosen.name}" counts from zero again.' if found else f'"{chosen.name}" has lost nothing.',
        markup=False,
    )


@processor_app.command()
@reporting
def delete(
    processor: Annotated[
        str, typer.Argument(metavar="PROCESSOR", help="module:name, also of one that the app does not have any more.")
    ],
    execute: Execute = False,
    as_json: AsJSON = False,
    redis_url: RedisURL = None,
) -> None:
    """Forget a processor that has no workers. Shows what would happen; --execute does it.

    Its positions go, its consumer groups, and its say in what may be trimmed. Events stay where they are.
    """
    app, name = load_or_name(processor, Processor, "runnel processor delete", redis_url=redis_url)
    found = run(plan_deletion(app, name))
    if execute:
        run(delete_processor(app, found))
    if as_json:
        show_json(asdict(found) | {"deleted": execute})
        return
    output.print(
        f'"{name}" on "{found.stream}", {number(found.lag, "event")} not processed'
        + ("" if found.declared else ", not in the app"),
        markup=False,
    )
    if execute:
        notes.print(f'Done: "{name}" is forgotten.', markup=False)
    elif found.workers:
        raise ProcessorInUse(f"It is run by {', '.join(found.workers)}. Stop its workers first.")
    elif found.declared:
        notes.print(
            "Nothing was changed. Add --execute to do it. A worker that runs it again begins at the first event there "
            "is.",
            markup=False,
        )
    else:
        notes.print("Nothing was changed. Add --execute to do it.", markup=False)
