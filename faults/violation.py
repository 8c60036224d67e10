"""What a check finds."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise.

    Attributes:
        check: C1 to C8, C10, or what a play calls it.
        text: what is wrong.
        at: when, for the account; ``None`` if at no particular time.
        partition: where.
    """

    check: str
    text: str
    at: float | None = None
    partition: int | None = None

    def __str__(self) -> str:
        return f"{self.check}: {self.text}"
