"""Creates a small working project: what ``runnel init`` does.

The files are in ``template``, and are a project themselves, called ``myproject``, so that linters and tests can check
them as they are. Creating a project is copying them under another name.
"""

import keyword
import re
import sys
from importlib.metadata import packages_distributions
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from runnel.errors import ProjectError

__all__ = ["create", "name_of"]

PLACEHOLDER = "myproject"
"""The name of the template, in its texts and in the names of its files."""

TAKEN = {"conftest", "runnel", "tests"}
"""Modules that a project has besides its own, or needs."""


def create(directory: Path) -> tuple[str, list[Path]]:
    """Write a project into a directory, which is made if it does not exist.

    Nothing is overwritten: it must be empty, except for hidden files that are not ours, such as ``.git`` and ``.venv``.

    Arguments:
        directory: where to. The project is called like it.

    Returns:
        The name of the project, which is that of its app and its module, and the files, relative to the directory.

    Raises:
        ProjectError: the directory is not empty, or cannot be written to, or there can be no project of that name.
    """
    name = name_of(directory)
    texts = {Path(path.replace(PLACEHOLDER, name)): text.replace(PLACEHOLDER, name) for path, text in _template()}
    try:
        if directory.exists():
            _check_empty(directory, {path.parts[0] for path in texts})
        for path, text in texts.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise ProjectError(f'Cannot write to "{directory}": {error.strerror}.') from None
    return name, sorted(texts)


def name_of(directory: Path) -> str:
    """The name of a project in a directory: that of the directory, with underscores for what a module cannot have.

    Raises:
        ProjectError: no Python module can have such a name, or one that is installed has it.
    """
    given = directory.resolve().name
    name = re.sub(r"[-. ]+", "_", given.lower()).strip("_")
    why = ""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        why = "it may have letters from a to z, digits and hyphens, and begins with a letter"
    elif keyword.iskeyword(name) or keyword.issoftkeyword(name):
        why = f'"{name}" is a word of Python\'s own'
    elif name in TAKEN or name in sys.stdlib_module_names or name in packages_distributions():
        why = f'there is another module "{name}", which could not be imported any more'
    if why:
        raise ProjectError(
            f'A project cannot be called "{given}": {why}. Choose another directory, such as: runnel init my-shop'
        )
    return name


def _check_empty(directory: Path, ours: set[str]) -> None:
    if not directory.is_dir():
        raise ProjectError(f'"{directory}" is a file. Choose another directory.')
    there = sorted(path.name for path in directory.iterdir())
    if obstacles := [name for name in there if name in ours or not name.startswith(".")]:
        more = f" and {len(obstacles) - 3} more" if len(obstacles) > 3 else ""
        raise ProjectError(
            f'"{directory}" is not empty: it has {", ".join(obstacles[:3])}{more}. Nothing was written. Choose a new '
            "directory, such as: runnel init my-shop"
        )


def _template() -> list[tuple[str, str]]:
    """Path and text of each file."""

    def walk(folder: Traversable, prefix: str) -> list[tuple[str, str]]:
        found = []
        for entry in folder.iterdir():
            if entry.is_dir():
                found += walk(entry, f"{prefix}{entry.name}/") if entry.name != "__pycache__" else []
            else:
                found.append((f"{prefix}{entry.name}", entry.read_text(encoding="utf-8")))
        return found

    return walk(files("runnel.project") / "template", "")
