"""A readable account of the first violation: what happened in its partition around that time."""

from collections.abc import Iterable
from typing import TypeVar

from faults.checker import Violation
from faults.history import Acquire, Commit, Effect, History
from faults.known import ROUNDED, Known

T = TypeVar("T", Effect, Acquire, Commit)

AROUND = 3.0
"""Seconds before and after."""

MOST_LINES = 400


def of(violations: list[Violation], history: History) -> str:
    """All violations by name, and the story of the one that was first in time."""
    lines = [f"{len(violations)} violations", ""]
    lines += [str(violation) for violation in violations[:50]]
    first = min((v for v in violations if v.at is not None), key=lambda v: v.at or 0.0, default=None)
    if first is not None and first.at is not None:
        lines += ["", f"The first: {first}", f"Partition {first.partition}, around {first.at:.3f}:", ""]
        lines += _story(history, first.at, first.partition)
    return "\n".join(lines) + "\n"


def _story(history: History, at: float, partition: int | None) -> Iterable[str]:
    place = Known(history).partition_of

    def here(items: Iterable[T]) -> Iterable[T]:
        return (item for item in items if partition in (None, item.partition))

    told = [
        *((effect.started, f"handle  {effect}") for effect in here(history.effects)),
        *((acquire.answered, f"acquire {acquire}") for acquire in here(history.acquires)),
        *((commit.answered, f"commit  {commit}") for commit in here(history.commits)),
        # What lasts until then, or beyond, has begun before.
        *((max(d.started, at - AROUND), f"FAULT   {d}") for d in history.disturbances if d.ended >= at - AROUND),
        *((send.invoked, f"send    {send}") for send in history.sends.values() if partition in (None, place(send))),
        *(
            (note.at, f"note    pid {note.pid} {note.name} {note.fields}")
            for note in history.notes
            if note.fields.get("partition") in (None, partition)
        ),
    ]
    near = sorted((time, text) for time, text in told if abs(time - at) <= AROUND + ROUNDED)
    if len(near) > MOST_LINES:  # those that are nearest in time
        middle = next((n for n, (time, _) in enumerate(near) if time >= at), len(near))
        first = min(max(0, middle - MOST_LINES // 2), len(near) - MOST_LINES)
        near = near[first : first + MOST_LINES]
    return [f"{time:.4f} {text}" for time, text in near]
