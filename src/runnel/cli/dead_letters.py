"""``runnel dead``: dead letters."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from runnel.admin import (
    DeadLetter,
    Plan,
    list_dead_letters,
    plan_purge,
    plan_replay,
    purge_dead_letters,
    replay_dead_letters,
)
from runnel.cli.looking import event_data, event_text
from runnel.cli.sending import StreamTarget
from runnel.cli.targets import RedisURL, app_of, load
from runnel.cli.terminal import AsJSON, Execute, notes, number, output, reporting, run, show_json, show_table
from runnel.streams import Stream

__all__ = ["dead_app"]

dead_app = typer.Typer(no_args_is_help=True)

Letters = Annotated[
    list[str] | None, typer.Argument(metavar="[LETTER]...", help="As `list` names them: partition/id. Default: all.")
]


@dead_app.callback()
def _group() -> None:
    """Look after events that were given up: those of a stream whose dead letters are in `<stream>.dead`."""


@dead_app.command("list")
@reporting
def list_(stream: StreamTarget, as_json: AsJSON = False, redis_url: RedisURL = None) -> None:
    """See the dead letters of a stream, the oldest first."""
    of = load(stream, Stream, "runnel dead list", redis_url=redis_url)
    letters = run(list_dead_letters(app_of(of), of))
    if as_json:
        show_json([_data(of, letter) for letter in letters])
        return
    _table(letters)
    if not letters:
        notes.print(f'"{of.name}" has no dead letters.', markup=False)


@dead_app.command()
@reporting
def show(stream: StreamTarget, letter: Letters = None, as_json: AsJSON = False, redis_url: RedisURL = None) -> None:
    """See dead letters with their records."""
    of = load(stream, Stream, "runnel dead show", redis_url=redis_url)
    letters = run(list_dead_letters(app_of(of), of, letter or None))
    if as_json:
        show_json([_data(of, one) for one in letters])
        return
    for one in letters:
        output.print(f"{one.name} of {one.stream}", markup=False)
        for name, said in (("from", one.source), ("failed in", one.processor), ("error", one.error)):
            output.print(f"  {name:<10} {said or 'it does not say'}", markup=False)
        output.print(f"  {'record':<10} {event_text(one.event, headers=False)}", markup=False)
    if not letters:
        notes.print(f'"{of.name}" has no dead letters.', markup=False)


@dead_app.command()
@reporting
def replay(
    stream: StreamTarget,
    letter: Letters = None,
    execute: Execute = False,
    as_json: AsJSON = False,
    redis_url: RedisURL = None,
) -> None:
    """Move dead letters back to the stream they come from. Shows what would happen; --execute does it.

    Each goes to the partition of its own key, once, also if this is interrupted and done again within a week. It comes
    AFTER everything that was sent meanwhile, later events of its own key included: order is not restored.
    """
    of = load(stream, Stream, "runnel dead replay", redis_url=redis_url)
    app = app_of(of)
    plans = run(plan_replay(app, of, letter or None))
    if execute:
        moved = number(run(replay_dead_letters(app, plans)), "event")
        said = f"Done: {moved} replayed, behind later events of the same key."
    else:
        said = f"{number(_able(plans), 'event')} will be sent again, and will come after later events of the same key."
    _outcome(of, plans, said, execute=execute, as_json=as_json)


@dead_app.command()
@reporting
def purge(
    stream: StreamTarget,
    letter: Letters = None,
    execute: Execute = False,
    as_json: AsJSON = False,
    redis_url: RedisURL = None,
) -> None:
    """Remove dead letters for good. Shows what would happen; --execute does it."""
    of = load(stream, Stream, "runnel dead purge", redis_url=redis_url)
    app = app_of(of)
    plans = run(plan_purge(app, of, letter or None))
    if execute:
        said = f"Done: {number(run(purge_dead_letters(app, plans)), 'dead letter')} removed."
    else:
        said = f"{number(_able(plans), 'dead letter')} will be removed."
    _outcome(of, plans, said, execute=execute, as_json=as_json)


def _able(plans: Sequence[Plan]) -> int:
    return sum(not plan.obstacle for plan in plans)


def _outcome(of: Stream[Any], plans: Sequence[Plan], said: str, *, execute: bool, as_json: bool) -> None:
    """Show what happens to which letters, and what stays, and why."""
    if as_json:
        show_json([_data(of, plan.letter) | {"to": plan.to, "obstacle": plan.obstacle} for plan in plans])
    elif not execute:
        _table([plan.letter for plan in plans if not plan.obstacle])
    for plan in plans:
        if plan.obstacle:
            notes.print(f"{plan.letter.name} stays: {plan.obstacle}.", style="yellow", markup=False)
    if not plans:
        notes.print(f'"{of.name}" has no dead letters.', markup=False)
    else:
        notes.print(said if execute else f"Nothing was changed. Add --execute to do it: {said}", markup=False)


def _table(letters: Sequence[DeadLetter]) -> None:
    if letters:
        show_table(
            ("letter", "from", "failed in", "error"),
            [
                (one.name, one.source or "-", one.processor or "-", " ".join((one.error or "-").split())[:100])
                for one in letters
            ],
        )


def _data(stream: Stream[Any], letter: DeadLetter) -> dict[str, Any]:
    return {
        "letter": letter.name,
        "stream": letter.stream,
        "source": letter.source,
        "processor": letter.processor,
        "failure": letter.error,
        "event": event_data(stream, letter.event),
    }
