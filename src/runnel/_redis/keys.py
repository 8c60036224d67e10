"""Every key name. Nothing else in Runnel builds one.

See ``docs/architecture.md`` for what each key holds. A name in braces is a hash tag: keys with the same tag are in
one slot of a Redis Cluster, so that one script may touch all of them.
"""

from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

from runnel._core.generations import Generation
from runnel._core.slots import tag_numbers

__all__ = ["ControlKeys", "StreamKeys", "all_of_app", "task_ticks"]


@lru_cache(maxsize=1024)  # a key takes 0.6 µs instead of 3; an append has one of it per partition, a commit as well
def _quoted(name: str) -> str:
    """``name`` without any character that has a meaning in our keys."""
    return quote(name, safe="")


def _of_stream(app: str, stream: str) -> str:
    return f"{_quoted(app)}/{_quoted(stream)}"


def _of_generation(name: str, generation: int) -> str:
    """``name`` in a generation of its stream. The first one has no number; ``@`` is in no name that is quoted."""
    return name if generation == 0 else f"{name}@{generation}"


@lru_cache(maxsize=1024)
def _data(app: str, stream: str, slot_groups: int, generation: int) -> tuple[str, ...]:
    """What the keys of each slot group begin with. Kept: an append has two keys per partition, a commit one."""
    name = _of_generation(_of_stream(app, stream), generation)
    numbers = (0,) if slot_groups == 1 else tag_numbers(name, slot_groups)
    return tuple(f"runnel:{{{name}#{number}}}" for number in numbers)


def all_of_app(app: str) -> str:
    """A pattern that all keys of an app match, and none of another app."""
    return f"runnel:{{{_quoted(app)}[/}}]*"


def task_ticks(app: str) -> str:
    """Hash: task name -> the last tick of it that somebody claimed; and who, by the nonce of the claim."""
    return f"runnel:{{{_quoted(app)}}}:ticks"


@dataclass(frozen=True, slots=True)
class ControlKeys:
    """The keys of one group: the members that share the partitions of a processor. All in one slot."""

    prefix: str

    @classmethod
    def of(cls, app: str, stream: str, processor: str, generation: int = 0) -> "ControlKeys":
        """The group of ``processor`` on a generation of ``stream``."""
        name = f"{_of_stream(app, stream)}/{_quoted(processor)}"
        return cls(f"runnel:{{{_of_generation(name, generation)}}}")

    @classmethod
    def of_leader(cls, app: str) -> "ControlKeys":
        """The group whose only partition is the leadership of ``app``."""
        return cls(f"runnel:{{{_quoted(app)}}}:leader")

    @property
    def group(self) -> str:
        """Hash: logical clock, epoch, last token, and when the next assignment is due."""
        return f"{self.prefix}:group"

    @property
    def members(self) -> str:
        """Hash: member -> joined|heartbeat|session|state|suspected."""
        return f"{self.prefix}:members"

    @property
    def targets(self) -> str:
        """Hash: partition -> the member that should own it."""
        return f"{self.prefix}:targets"

    @property
    def owners(self) -> str:
        """Hash: partition -> member|token|revoked."""
        return f"{self.prefix}:owners"

    @property
    def parked(self) -> str:
        """Hash: what is not to be processed. partition -> member|JSON (a quarantine); * -> |JSON (a pause of all)."""
        return f"{self.prefix}:parked"

    @property
    def slow(self) -> str:
        """Hash: partition -> token|id|milliseconds of the event that has been in progress since then."""
        return f"{self.prefix}:slow"

    def wake(self, member: str) -> str:
        """Sharded channel: wakes a member, and shows the server that it is connected."""
        return f"{self.prefix}:wake:{member}"


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """The keys of one generation of a stream; the metadata are those of all.

    The partitions are divided into slot groups; the keys of each are in one slot.
    """

    app: str
    stream: str
    slot_groups: int = 1
    generation: int = 0

    @classmethod
    def of(cls, app: str, stream: str, generation: Generation) -> "StreamKeys":
        """The keys of a generation."""
        return cls(app, stream, generation.slot_groups, generation.number)

    def control(self, processor: str) -> ControlKeys:
        """The keys of the group that shares the partitions of this generation for a processor."""
        return ControlKeys.of(self.app, self.stream, processor, self.generation)

    def _data(self, slot_group: int) -> str:
        return _data(self.app, self.stream, self.slot_groups, self.generation)[slot_group]

    @property
    def metadata(self) -> str:
        """Hash: partition_count, slot_groups, hasher, format; generations, see ``_core/generations.py``."""
        return f"runnel:{{{_of_stream(self.app, self.stream)}}}:meta"

    def slot_group(self, partition: int) -> int:
        """The slot group of a partition."""
        return partition % self.slot_groups

    def sealed(self, slot_group: int) -> str:
        """String: there, if nothing can be appended any more, because there is another generation."""
        return f"{self._data(slot_group)}:sealed"

    def registered(self, slot_group: int) -> str:
        """Set: the processors whose unprocessed entries must not be trimmed."""
        return f"{self._data(slot_group)}:processors"

    def log(self, partition: int) -> str:
        """Stream: the entries of a partition."""
        return f"{self._data(self.slot_group(partition))}:log:{partition}"

    def positions_prefix(self, slot_group: int) -> str:
        """What :meth:`positions` begins with; the append script looks up every registered processor."""
        return f"{self._data(slot_group)}:pos:"

    def positions(self, slot_group: int, processor: str) -> str:
        """Hash: partition -> token|offset|count of a processor."""
        return self.positions_prefix(slot_group) + self.group_name(processor)

    def sequence(self, partition: int, producer: str) -> str:
        """String: the last sequence of a producer, and the id of the last entry it appended."""
        return f"{self._data(self.slot_group(partition))}:seq:{partition}:{_quoted(producer)}"

    def sequences_prefix(self, slot_group: int) -> str:
        """What :meth:`sequence` begins with, for all partitions of a slot group."""
        return f"{self._data(slot_group)}:seq:"

    @staticmethod
    def group_name(processor: str) -> str:
        """The consumer group that mirrors a processor's position, and its name inside keys."""
        return _quoted(processor)

    @staticmethod
    def mark_name(group: str) -> str:
        """The consumer group that shows that the processor of ``group`` has acquired a log; see ``log.lua``."""
        return f"{group}:mark"
