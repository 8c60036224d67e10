"""``runnel quarantine``: partitions that have failed."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from runnel.admin import Quarantine, failed_events, list_quarantines, retry_quarantine, skip_quarantine
from runnel.app import App
from runnel.cli.looking import AppTarget, event_data, event_text
from runnel.cli.processors import ProcessorTarget
from runnel.cli.targets import RedisURL, app_of, load
from runnel.cli.terminal import (
    INTERVAL,
    AsJSON,
    Partitions,
    Watch,
    notes,
    number,
    output,
    repeatedly,
    reporting,
    run,
    show_json,
    show_table,
    watching,
)
from runnel.processors import Processor

__all__ = ["quarantine_app"]

quarantine_app = typer.Typer(no_args_is_help=True)


@quarantine_app.callback()
def _group() -> None:
    """Look after partitions that have failed under the policy QUARANTINE."""


@quarantine_app.command("list")
@reporting
def list_(target: AppTarget = None, watch: Watch = False, as_json: AsJSON = False, redis_url: RedisURL = None) -> None:
    """See which partitions are quarantined, since when, and why."""
    app = load(target, App, "runnel quarantine list", redis_url=redis_url)

    def show(found: list[Quarantine]) -> None:
        if as_json:
            show_json([_data(one) for one in found], lines=watch)
            return
        if found:
            show_table(
                ("processor", "partition", "since", "event", "lag", "error"),
                [
                    (q.processor, str(q.partition), q.since, _which(q), f"{q.lag:,}", " ".join(q.error.split())[:100])
                    for q in found
                ],
                right=("partition", "lag"),
            )
        else:
            notes.print("Nothing is quarantined.")

    if watch:
        run(watching(lambda: repeatedly(lambda: list_quarantines(app), INTERVAL), show))
    show(run(list_quarantines(app)))


@quarantine_app.command()
@reporting
def show(
    processor: ProcessorTarget, partition: Partitions = None, as_json: AsJSON = False, redis_url: RedisURL = None
) -> None:
    """See what failed: the events, the error and its traceback."""
    chosen = load(processor, Processor, "runnel quarantine show", redis_url=redis_url)
    app: App = app_of(chosen.stream)
    found = run(list_quarantines(app, chosen.name, partition))
    events = [run(failed_events(app, one)) for one in found]
    if as_json:
        both = zip(found, events, strict=True)
        show_json([_data(q) | {"records": [event_data(chosen.stream, event) for event in its]} for q, its in both])
        return
    for one, its in zip(found, events, strict=True):
        output.print(f"{one.processor}, partition {one.partition}, since {one.since}, in {one.owner}", markup=False)
        for event in its:
            output.print(f"  {event.id}  {event_text(event)}", markup=False)
        if len(its) < len(one.events):
            output.print(f"  {number(len(one.events) - len(its), 'event')} not in the log any more", markup=False)
        if not one.events:
            output.print("  failed before it had taken an event", markup=False)
        output.print(one.traceback.rstrip(), markup=False)
    if not found:
        notes.print("Nothing is quarantined there.")


@quarantine_app.command()
@reporting
def retry(processor: ProcessorTarget, partition: Partitions = None, redis_url: RedisURL = None) -> None:
    """Try the failed events again, in the workers that own the partitions. Without --partition, all of them."""
    chosen = load(processor, Processor, "runnel quarantine retry", redis_url=redis_url)
    for one in (found := run(retry_quarantine(app_of(chosen.stream), chosen.name, partition))):
        what = f"partition {one.partition} of " + f'"{chosen.name}" goes on with {_which(one)}'
        notes.print(f"Retrying: {what}.", markup=False)
    if not found:
        notes.print("Nothing is quarantined there.")


@quarantine_app.command()
@reporting
def skip(
    processor: ProcessorTarget,
    partition: Annotated[list[int], typer.Option("--partition", help="Which; may be repeated.")],
    as_json: AsJSON = False,
    redis_url: RedisURL = None,
) -> None:
    """Move the failed events to the dead letters, and go on behind them.

    A failed batch moves as a whole. Interrupted, it can be done again: each event becomes one dead letter.
    """
    chosen = load(processor, Processor, "runnel quarantine skip", redis_url=redis_url)
    skipped = run(skip_quarantine(app_of(chosen.stream), chosen.name, partition))
    if as_json:
        show_json([asdict(one) for one in skipped])
        return
    for one in skipped:
        moved = f'{number(len(one.events), "event")} moved to "{one.sink}"' if one.events else "no event moved"
        gone = f"; {', '.join(one.missing)} had been removed from the log" if one.missing else ""
        ended = "" if one.lifted else "; the quarantine had ended meanwhile, so it may have been processed as well"
        notes.print(f"Skipped in partition {one.partition}: {moved}{gone}{ended}.", markup=False)


def _which(quarantine: Quarantine) -> str:
    if not quarantine.events:
        return "none"
    more = len(quarantine.events) - 1
    return quarantine.events[0] + (f" and {more} more" if more else "")


def _data(quarantine: Quarantine) -> dict[str, Any]:
    data = asdict(quarantine)
    del data["mark"]
    return data
