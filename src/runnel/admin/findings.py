"""What a check may find, and what is said about it."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Finding", "number", "ranges", "where"]


def number(n: int, noun: str) -> str:
    """``1 event``, ``2,000 events``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def ranges(numbers: Sequence[int]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3 and 7; ``-`` for none."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][-1] == n - 1:
            parts[-1][1:] = [n]
        else:
            parts.append([n])
    return ", ".join("-".join(map(str, part)) for part in parts) or "-"


def where(partitions: Sequence[int]) -> str:
    """``partition 3``, ``partitions 0-3, 7``."""
    return f"partition{'' if len(partitions) == 1 else 's'} {ranges(partitions)}"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a check has found.

    Attributes:
        what: what is the case, to what, and why it matters.
        cure: what to do about it.
        urgent: whether something must be done; else it is worth knowing.
    """

    what: str
    cure: str
    urgent: bool = True
