"""The log of a private server: a file in its directory, which is also the lock on that directory."""

import fcntl
import time
from pathlib import Path
from typing import BinaryIO

from runnel.errors import ConfigurationError

__all__ = ["last_words", "open_log"]

TAIL = 12
"""Lines that an error shows: a fatal configuration error has six, a failed bind three."""

LOCK_PATIENCE = 3.0
"""Seconds to wait for the server of a program that has just been killed. Its watchdog takes two at most."""


def open_log(path: Path) -> BinaryIO:
    """The log of a directory, emptied, and locked for as long as the server has it open.

    Two servers that append to the same files would destroy them. The lock belongs to the open file, which watchdog and
    server inherit: it goes when the last of them does, however that ends.
    """
    try:
        log = path.open("ab")
    except OSError as error:
        raise ConfigurationError(f"The private server cannot write its log, {path}: {error}.") from error
    deadline = time.monotonic() + LOCK_PATIENCE
    try:
        while True:
            try:
                fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConfigurationError(
                        f"Another private server uses the directory {path.parent}. Stop that one, or choose another "
                        "`data_dir`."
                    ) from error
                time.sleep(0.02)
            else:
                log.truncate(0)
                return log
    except BaseException:
        log.close()
        raise


def last_words(log: Path) -> str:
    """The end of the log, for an error's message."""
    lines = log.read_text(errors="replace").splitlines()[-TAIL:]
    return "\n".join(["Its log ends:", *(f"  {line}" for line in lines)]) if lines else "Its log is empty."
