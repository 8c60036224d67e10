"""Reads what the processes wrote down."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EntryId = tuple[int, int]
Serial = tuple[str, int]
"""Producer and its serial: what an event is known by."""

UNREADABLE = "?"
"""The key of what a handler could not decode."""


def entry_id(text: str) -> EntryId:
    """``5-1`` as numbers."""
    milliseconds, _, sequence = text.partition("-")
    return int(milliseconds), int(sequence)


@dataclass(frozen=True, slots=True)
class Effect:
    """A handler had an event once. Times in seconds of CLOCK_MONOTONIC, here and below.

    ``result`` is ``done``, ``failed``, or ``cancelled`` because its partition was lost.
    """

    started: float
    ended: float
    pid: int
    partition: int
    token: int
    id: EntryId
    key: str
    number: int
    serial: Serial
    check: int
    result: str = "done"


@dataclass(frozen=True, slots=True)
class Acquire:
    """A worker has asked for a partition."""

    sent: float
    answered: float
    pid: int
    partition: int
    token: int
    status: str
    offset: EntryId
    lost: int
    rolled_back: bool


@dataclass(frozen=True, slots=True)
class Commit:
    """A worker has committed, or tried to."""

    sent: float
    answered: float
    pid: int
    partition: int
    token: int
    status: str
    previous: EntryId
    offset: EntryId


@dataclass(frozen=True, slots=True)
class Note:
    """Somebody has announced something."""

    at: float
    pid: int
    name: str
    fields: dict[str, Any]


@dataclass(slots=True)
class Send:
    """An event that a producer has sent, or tried to. ``outcome`` is O, F or U, see ``journal``; U if none came."""

    invoked: float
    serial: Serial
    key: str
    number: int
    check: int
    outcome: str = "U"
    ended: float | None = None
    id: EntryId | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of the log, at the end."""

    partition: int
    id: EntryId
    key: str
    number: int
    serial: Serial
    check: int


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter, at the end: where it comes from, and the check of what it holds."""

    partition: int
    id: EntryId
    source: tuple[int, EntryId]
    check: int


@dataclass(frozen=True, slots=True)
class Look:
    """What the server said while the play ran: who was the last to acquire a partition, and the position."""

    sent: float
    answered: float
    partition: int
    token: int
    offset: EntryId


@dataclass(frozen=True, slots=True)
class Disturbance:
    """What was done to somebody.

    Attributes:
        kind: what, in a word: kill, term, freeze, cut, hold, crash (of the server), destroy, forget (positions, but
            no events), delete, fail-over (of what replicas have confirmed, nothing may be lost), lossy fail-over, ...
        started: when.
        ended: when it was over; the same for what takes no time.
        pid: of whom; 0 for the server.
        partition: which one was destroyed or failed over, or where the entry was deleted.
        entry: which one was deleted.
    """

    kind: str
    started: float
    ended: float
    pid: int = 0
    partition: int | None = None
    entry: EntryId | None = None


@dataclass(slots=True)
class History:
    """Everything that is known of a run.

    Attributes:
        complete: whether ``log`` holds everything that ever was in it: nothing is trimmed.
        raw: what was appended by hand and is no record, by partition and entry.
    """

    effects: list[Effect] = field(default_factory=list)
    acquires: list[Acquire] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    sends: dict[Serial, Send] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)
    letters: list[Letter] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    raw: dict[tuple[int, EntryId], Send] = field(default_factory=dict)
    disturbances: list[Disturbance] = field(default_factory=list)
    complete: bool = True


RESULTS = {"E": "done", "P": "failed", "K": "cancelled"}


def read(directory: Path, raw: Mapping[tuple[int, EntryId], Send]) -> History:
    """What the processes wrote; without what the stage knows.

    Arguments:
        directory: of the journals.
        raw: what was appended by hand. Workers cannot tell what it is.
    """
    found = History(raw=dict(raw))
    for send in raw.values():
        found.sends[send.serial] = send
    for path in sorted(directory.glob("*.journal")):
        role, *rest = path.stem.split("-")
        pid = int(rest[-1])
        producer = "-".join(rest[:-1])
        for kind, fields in _lines(path):
            _take(found, kind, fields, pid, producer if role == "producer" else "")
    found.effects.sort(key=lambda effect: effect.ended)
    found.acquires.sort(key=lambda acquire: acquire.answered)
    found.commits.sort(key=lambda commit: commit.answered)
    found.notes.sort(key=lambda note: note.at)
    return found


def _what_it_was(found: History, place: tuple[int, EntryId]) -> tuple[str, int, Serial]:
    send = found.raw.get(place)
    return (send.key, send.number, send.serial) if send is not None else (UNREADABLE, 0, (UNREADABLE, 0))


def _lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    for line in path.read_text().split("\n")[:-1]:
        kind, _, rest = line.partition(" ")
        yield kind, rest.split(" ", 2) if kind == "N" else rest.split(" ")


def _take(found: History, kind: str, f: list[str], pid: int, producer: str) -> None:
    match kind:
        case "E" | "P" | "K":
            place = int(f[2]), entry_id(f[4])
            what = (f[5], int(f[6]), (f[7], int(f[8]))) if f[5] != UNREADABLE else _what_it_was(found, place)
            found.effects.append(
                Effect(*(float(f[0]), float(f[1]), pid, place[0], int(f[3]), place[1]), *what, int(f[9]), RESULTS[kind])
            )
        case "A":
            offset = (0, 0) if f[5] == "-" else entry_id(f[5])
            found.acquires.append(
                Acquire(
                    *(float(f[0]), float(f[1]), pid, int(f[2]), int(f[3]), f[4], offset, int(f[6])),
                    rolled_back=f[7] != "-",
                )
            )
        case "C":
            found.commits.append(
                Commit(
                    *(float(f[0]), float(f[1]), pid, int(f[2]), int(f[3]), f[4]),
                    *(entry_id(f[5]), entry_id(f[6])),
                )
            )
        case "N":
            found.notes.append(Note(float(f[0]), pid, f[1], json.loads(f[2])))
        case "X":
            pass  # for the play that gave the order
        case "I":
            serial = (producer, int(f[1]))
            found.sends[serial] = Send(float(f[0]), serial, f[2], int(f[3]), int(f[4]))
        case _:
            send = found.sends[producer, int(f[1])]
            send.outcome, send.ended = kind, float(f[0])
            if kind == "O":
                send.id = entry_id(f[2])
