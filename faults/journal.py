"""Writing down what happens, one line each, in a file that no fault touches.

A line is one ``write``, so that a process that is killed leaves whole lines. Times are seconds of CLOCK_MONOTONIC,
which all processes of a machine share. The fields are separated by blanks and contain none; the last one may.

====  ==========================================================================  ======================
kind  fields                                                                      written by
====  ==========================================================================  ======================
E     started ended partition token id key number producer serial check           a handler, at its end
P     as E                                                                        a handler that fails
K     as E                                                                        a handler that is cancelled
A     sent answered partition token status offset lost rolled_back                a worker, per acquire
C     sent answered partition token status previous offset                        a worker, per commit
N     at name fields (JSON)                                                       a worker, per announcement
X     at number                                                                   a handler: an order is carried out
I     at serial key number check                                                  a producer, before it sends
O     at serial id                                                                a producer: sent
F     at serial error                                                             a producer: refused
U     at serial error                                                             a producer: may be sent or not
====  ==========================================================================  ======================
"""

import dataclasses
import json
import os
import time
from pathlib import Path

from runnel.instruments import Announcement


class Journal:
    """The file of one process."""

    def __init__(self, directory: Path, name: str) -> None:
        path = directory / f"{name}-{os.getpid()}.journal"
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, kind: str, *fields: object) -> None:
        """One line."""
        os.write(self._file, f"{kind} {' '.join(map(str, fields))}\n".encode())

    def announced(self, announcement: Announcement) -> None:
        """Subscribe this to the instruments of an app."""
        fields = {
            field.name: getattr(announcement, field.name)
            for field in dataclasses.fields(announcement)
            if field.name != "error"
        }
        if (error := getattr(announcement, "error", None)) is not None:
            fields["error"] = f"{type(error).__name__}: {error}"
        self.write("N", f"{time.monotonic():.4f}", type(announcement).__name__, json.dumps(fields))
