"""``runnel doctor``."""

import sys
from dataclasses import asdict

import typer

from runnel.admin import examine
from runnel.app import App
from runnel.cli.looking import AppTarget
from runnel.cli.targets import RedisURL, load
from runnel.cli.terminal import AsJSON, notes, output, reporting, run, show_json
from runnel.processors import Processor

__all__ = ["doctor"]


@reporting
def doctor(target: AppTarget = None, as_json: AsJSON = False, redis_url: RedisURL = None) -> None:
    """Check the server, the settings, the workers and their partitions; each finding with its cure.

    Exit status 1 if something must be done.
    """
    app = load(target, App, "runnel doctor", redis_url=redis_url)
    found = run(examine(app, _calls(app)))
    if as_json:
        show_json([asdict(finding) for finding in found])
    for finding in found if not as_json else ():
        output.print("!" if finding.urgent else "-", style="bold red" if finding.urgent else "yellow", end=" ")
        output.print(f"{finding.what}\n    {finding.cure}", markup=False)
    urgent = sum(finding.urgent for finding in found)
    if urgent:
        notes.print(f"{urgent} to be mended, {len(found) - urgent} to be known.", style="red", markup=False)
        raise typer.Exit(1)
    notes.print("Nothing has to be done." if found else "All is well.", markup=False)


def _calls(app: App) -> dict[str, str]:
    """What the processors of an app are called on the command line."""
    return {
        value.name: f"{module.__name__}:{attribute}"
        for module in tuple(sys.modules.values())
        for attribute, value in tuple(vars(module).items())
        if isinstance(value, Processor) and app.processors.get(value.name) is value and module.__name__ != "__main__"
    }
