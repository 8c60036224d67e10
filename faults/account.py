"""A readable account of the first violation: what happened in its partition around that time."""

from collections.abc import Iterable
from typing import TypeVar

from faults.checker import Violation
from faults.history import Acquire, Commit, Effect, History

T = TypeVar("T", Effect, Acquire, Commit)

AROUND = 3.0
"""Seconds before and after."""

MOST_LINES = 400


def of(violations: list[Violation], history: History) -> str:
    """All violations by name, and the story of the first one that has a time."""
    lines = [f"{len(violations)} violations", ""]
    lines += [str(violation) for violation in violations[:50]]
    first = next((v for v in violations if v.at is not None), None)
    if first is not None and first.at is not None:
        lines += ["", f"The first: {first}", f"Partition {first.partition}, around {first.at:.3f}:", ""]
        lines += _story(history, first.at, first.partition)
    return "\n".join(lines) + "\n"


def _story(history: History, at: float, partition: int | None) -> Iterable[str]:
    def here(items: Iterable[T]) -> Iterable[T]:
        return (item for item in items if partition in (None, item.partition))

    told = [
        *((effect.started, f"handle  {effect}") for effect in here(history.effects)),
        *((acquire.answered, f"acquire {acquire}") for acquire in here(history.acquires)),
        *((commit.answered, f"commit  {commit}") for commit in here(history.commits)),
        *((d.started, f"FAULT   {d}") for d in history.disturbances),
        *(
            (note.at, f"note    pid {note.pid} {note.name} {note.fields}")
            for note in history.notes
            if note.fields.get("partition") in (None, partition)
        ),
    ]
    near = sorted((time, text) for time, text in told if abs(time - at) <= AROUND)
    return [f"{time:.4f} {text}" for time, text in near[:MOST_LINES]]
