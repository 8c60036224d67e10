"""``runnel processor``: look after a processor."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from runnel.admin import apply_reset, plan_reset
from runnel.app import App
from runnel.cli.targets import RedisURL, app_of, load
from runnel.cli.terminal import notes, output, reporting, run
from runnel.processors import Processor

__all__ = ["processor_app"]

processor_app = typer.Typer(no_args_is_help=True)


@processor_app.callback()
def _group() -> None:
    """Look after a processor."""


@processor_app.command()
@reporting
def reset(
    processor: Annotated[str, typer.Argument(help="module:attribute of the processor, such as example:printer.")],
    start: Annotated[
        str, typer.Option(help="Id of the first event to process: 0 the first there is, $ only those yet to come.")
    ],
    partition: Annotated[list[int] | None, typer.Option(help="Only this partition; may be repeated.")] = None,
    execute: Annotated[bool, typer.Option("--execute", help="Do it, instead of only showing it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    redis_url: RedisURL = None,
) -> None:
    """Let a processor go on from another place. Shows what would happen; --execute does it.

    Workers may run meanwhile: they finish the event in progress and go on from the new place.
    """
    chosen = load(processor, Processor, "runnel processor reset", redis_url=redis_url)
    app: App = app_of(chosen.stream)
    resets = run(plan_reset(app, chosen.name, start, partition))
    if execute:
        run(apply_reset(app, chosen.name, resets))
    if as_json:
        output.print_json(json.dumps([asdict(item) for item in resets]))
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("partition", "position", "new position", "waiting", "will wait"):
            table.add_column(heading, justify="right")
        for item in resets:
            table.add_row(
                str(item.partition), item.position or "none", item.offset, f"{item.lag:,}", f"{item.new_lag:,}"
            )
        output.print(table)
    waiting = sum(item.new_lag for item in resets)
    if execute:
        notes.print(f'Done: "{chosen.name}" goes on from there, with {waiting:,} events to process.', markup=False)
    else:
        notes.print(f"Nothing was changed. Add --execute to do it: {waiting:,} events will be processed.", markup=False)
