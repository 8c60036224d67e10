"""What a check may find, and what is said about it."""

from dataclasses import dataclass

__all__ = ["Finding", "number"]


def number(n: int, noun: str) -> str:
    """``1 event``, ``2,000 events``."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


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
