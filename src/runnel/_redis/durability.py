"""Where an event or a position must be stored before it counts as stored."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runnel.errors import NotDurable

__all__ = ["DISK", "PRIMARY", "REPLICA", "Confirmation", "confirmation"]

PATIENCE = 1.0
"""Seconds that the server waits for a replica before the operation is repeated, and waits again. A replica acknowledges
as soon as it is asked."""

SYNC = 3.0
"""The same for the disk. With ``appendfsync everysec``, a sync that has just begun must end before the next one can."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What to ask the server behind a command, on the same connection.

    Attributes:
        command: empty for nothing.
        check: raises :class:`NotDurable` unless the answer is a confirmation.
        seconds: for which the server may take to answer it.
    """

    command: tuple[Any, ...] = ()
    check: Callable[[Any], None] = lambda answer: None
    seconds: float = 0.0


def _replica(answer: Any) -> None:
    if answer < 1:
        raise NotDurable(
            f"It is stored on the primary, but no replica has confirmed it within {PATIENCE:g} s: a fail-over may lose "
            "it.",
            'See the replicas of the server, or use durability="primary".',
        )


def _disk(answer: Any) -> None:
    if answer[0] < 1:
        raise NotDurable(
            f"It is stored in the server's memory, but not synced to its disk within {SYNC:g} s: a crash may lose it.",
            "See the server's disk and its setting appendfsync (always or everysec).",
        )


PRIMARY = Confirmation()
REPLICA = Confirmation(("WAIT", 1, int(PATIENCE * 1000)), _replica, PATIENCE)
DISK = Confirmation(("WAITAOF", 1, 0, int(SYNC * 1000)), _disk, SYNC)


def confirmation(durability: str) -> Confirmation:
    """What the setting ``durability`` asks for: ``primary``, ``replica`` or ``disk``."""
    return {"primary": PRIMARY, "replica": REPLICA, "disk": DISK}[durability]
