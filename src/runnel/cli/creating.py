"""``runnel init``: a small working project to begin with."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.terminal import notes, reporting
from runnel.project import create

__all__ = ["init"]

FIRST = '{"order_id": 1, "customer": "ann", "amount": 9.99}'


@reporting
def init(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to; made if it does not exist.")] = Path(),
) -> None:
    """Create a small working project: an app, a test, pyproject.toml, a Dockerfile and a compose file.

    It is called like its directory. Nothing is overwritten: the directory must be empty, except for hidden files such
    as .git and .venv.
    """
    name, files = create(directory)
    steps = [
        ("pip install -e '.[dev]'", "what it needs"),
        ("pytest", "its test, on a server of its own"),
        ("runnel dev", "a worker, with a server if you have none, restarted on changes"),
        (f"runnel send {name}:orders '{FIRST}'", "in a second terminal"),
    ]
    if directory.resolve() != Path.cwd():
        steps.insert(0, (f"cd {shlex.quote(str(directory))}", ""))
    lines = [f"Created {name}:", *(f"  {path}" for path in files), "", "Next:"]
    for command, what in steps:
        lines += [f"  {command}", *([f"      {what}"] if what else [])]
    notes.print("\n".join(lines), markup=False)
