"""How a stream is divided, and was before: what its metadata say, as values.

A stream is divided anew by beginning another *generation* of it: partitions of their own, which producers go over to at
one instant, and which a processor begins when it has processed all that is in the generation before.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from runnel._core.slots import slot_groups_for

__all__ = ["Generation", "Generations"]

EARLIER = "was:"
"""Metadata field: how an earlier generation was divided."""

BEGUN = "at:"
"""Metadata field: the generation that a processor has begun."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One division of a stream: its number, how many partitions, and over how many slot groups they are spread."""

    number: int
    partition_count: int
    slot_groups: int

    @property
    def division(self) -> str:
        """How it is divided, as the metadata remember it."""
        return f"{self.partition_count}|{self.slot_groups}"

    def divided_anew(self, partition_count: int | None, slot_groups: int | None, *, primaries: int) -> "Generation":
        """The one to come after this.

        Arguments:
            partition_count: ``None`` for as many as in this one.
            slot_groups: ``None`` for as many as in this one, or as a new stream with ``partition_count``, if that is
                given, would have, if that is more.
            primaries: servers that events are sent to.
        """
        count, groups = partition_count, slot_groups
        if count is None:
            count = self.partition_count
        if groups is None:
            groups = self.slot_groups
            if partition_count is not None:
                usual = slot_groups_for(primaries, count)
                groups = max(groups, usual) if groups <= count else usual
        return Generation(self.number + 1, count, groups)

    @classmethod
    def divided(cls, number: int, division: str) -> "Generation":
        """The generation of that number; the reverse of :attr:`division`."""
        partition_count, slot_groups = division.split("|")
        return cls(number, int(partition_count), int(slot_groups))


@dataclass(frozen=True, slots=True)
class Generations:
    """All generations of a stream.

    Attributes:
        current: where producers append to.
        following: what ``current`` is being replaced by, as soon as it is sealed; else ``None``.
        earlier: those before, the first one first, also where their logs are gone.
        oldest: number of the first one whose logs there are.
        begun: processor (its name in keys) -> the generation that it has begun.
        moving: the address of the server that the stream is being moved to; else empty.
        moved: the address of the server where it is now; else empty.
        arriving: whether it is being moved to this server, and is not complete yet.
    """

    current: Generation
    following: Generation | None
    earlier: tuple[Generation, ...]
    oldest: int
    begun: Mapping[str, int]
    moving: str = ""
    moved: str = ""
    arriving: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> "Generations":
        """What the metadata of a stream say; there must be some."""
        number = int(metadata.get("generation", 0))
        earlier = {int(name[len(EARLIER) :]): value for name, value in metadata.items() if name.startswith(EARLIER)}
        following = metadata.get("next")
        return cls(
            Generation(number, int(metadata["partition_count"]), int(metadata["slot_groups"])),
            None if following is None else Generation.divided(number + 1, following),
            tuple(Generation.divided(n, division) for n, division in sorted(earlier.items())),
            int(metadata.get("oldest", 0)),
            {name[len(BEGUN) :]: int(value) for name, value in metadata.items() if name.startswith(BEGUN)},
            metadata.get("moving", "").partition("|")[2],
            metadata.get("moved", ""),
            "arriving" in metadata,
        )

    @property
    def existing(self) -> tuple[Generation, ...]:
        """Those whose logs there are, the oldest one first."""
        return (*(one for one in self.earlier if one.number >= self.oldest), self.current)

    @property
    def newest(self) -> Generation:
        """The last one that is declared, whether it is in use already or not."""
        return self.following or self.current

    def of_processor(self, name: str) -> Generation:
        """The generation that a processor is at. A new one begins with the oldest there is.

        Arguments:
            name: of the processor, as it is in keys.
        """
        at = max(self.begun.get(name, 0), self.oldest)
        return next((one for one in self.existing if one.number >= at), self.current)

    def after(self, generation: Generation) -> Generation | None:
        """The one that producers have gone over to after ``generation``; ``None`` while they are still there."""
        return next((one for one in self.existing if one.number > generation.number), None)
