"""``runnel bench``."""

import json
import signal
from contextlib import ExitStack
from types import FrameType
from typing import Annotated

import typer

from runnel.cli.targets import RedisURL
from runnel.cli.terminal import notes, output, reporting
from runnel.settings import load_settings

__all__ = ["bench"]


@reporting
def bench(
    rows: Annotated[list[str] | None, typer.Argument(help="Names of rows, as in the table. Default: all.")] = None,
    rounds: Annotated[int, typer.Option(help="How often each is measured.", min=1)] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Few events, one round: to see that it runs.")] = False,
    events: Annotated[int | None, typer.Option(help="Events per measurement. Default: 200,000.", min=1_000)] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Exit status 1 where a row misses what it must reach.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Every value of every round, as JSON.")] = False,
    embedded: Annotated[bool, typer.Option("--embedded", help="On private servers.")] = False,
    redis_url: RedisURL = None,
) -> None:
    """Measure Runnel beside the loop that an expert writes by hand with redis-py, on your server.

    Both sides take turns in processes of their own, in several rounds; ratios count. Uses keys of its own on the server
    (up to 800 MB for a while), and removes them at the end, also after Ctrl-C. Takes about four minutes a round.
    """
    from dataclasses import replace

    from runnel import bench as benching  # the command line starts faster without it

    scale = benching.QUICK if quick else benching.FULL
    if events is not None:
        scale = replace(scale, events=events)
    selected = benching.chosen(rows or [], scale)
    rounds = 1 if quick else rounds
    signal.signal(signal.SIGTERM, _interrupt)  # so that what is on the server is removed then as well
    with ExitStack() as stack:
        if embedded:
            servers = benching.private_servers(stack, {side.server for row in selected for side in row.sides})
        else:
            given = {} if redis_url is None else {"redis_url": redis_url}
            url = load_settings({"name": "bench", **given}).redis_url
            servers = {"plain": url, "durable": url}
        with notes.status("") as status:
            suite = benching.Suite(servers, selected, say=status.update)
            suite.run(rounds)
    if as_json:
        print(json.dumps(benching.as_json(suite, rounds), indent=1))
    else:
        output.print(benching.as_table(suite, rounds))
    missed = [outcome.row.name for outcome in suite.outcomes if outcome.met is False]
    if check and missed:
        notes.print(f"Missed: {', '.join(missed)}")
        raise typer.Exit(1)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
