"""What the workers write about each event they have processed: one line of JSON, in a file per worker.

Not in Redis, so that it is evidence of its own. A line is appended by a single ``write``: a worker that is killed
leaves at most its last line unfinished.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

__all__ = ["Entry", "Journal", "Reader", "journal_of"]


@dataclass(frozen=True, slots=True)
class Entry:
    """An event that was processed.

    Attributes:
        number: of the flight in the feed.
        carried: minutes, the result.
        event: its id.
        partition: that it came from.
        token: of the ownership under which it was processed; grows when the owner changes.
        worker: process id.
        start: when the processing began, in seconds of the monotonic clock, which all processes of a machine share.
        end: when its effect was stored.
    """

    number: int
    carried: int
    event: str
    partition: int
    token: int
    worker: int
    start: float
    end: float

    def line(self) -> bytes:
        """As it is written."""
        return json.dumps({name: getattr(self, name) for name in self.__slots__}).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Self:
        """What ``line`` has made of one."""
        return cls(**json.loads(line))


def journal_of(directory: Path, worker: int) -> Path:
    """Where a worker writes; the file exists as soon as the worker is up."""
    return directory / f"worker-{worker}.jsonl"


class Journal:
    """The journal of this process, to append to."""

    def __init__(self, directory: Path) -> None:
        self._file = os.open(journal_of(directory, os.getpid()), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def append(self, entry: Entry) -> None:
        """Write it now."""
        os.write(self._file, entry.line())


class Reader:
    """The journal of another process, to follow."""

    def __init__(self, directory: Path, worker: int) -> None:
        self._path = journal_of(directory, worker)
        self._offset = 0

    @property
    def exists(self) -> bool:
        """Whether the worker is up."""
        return self._path.exists()

    def read(self) -> list[Entry]:
        """The entries since the last call. A line that is not finished waits for the next one."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            finished = file.read().rpartition(b"\n")[0].splitlines(keepends=True)
        if finished:
            self._offset += sum(map(len, finished)) + 1  # the last line feed is not among them
        return [Entry.parse(line) for line in finished]
