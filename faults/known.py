"""A history with what more than one check needs: what happened where, and what excuses what."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from faults.history import (
    Acquire,
    Commit,
    Disturbance,
    Effect,
    Entry,
    EntryId,
    History,
    Letter,
    Look,
    Note,
    Send,
    entry_id,
)
from faults.records import PARTITIONS
from runnel._core.routing import DEFAULT_HASHER
from runnel._core.routing import partition_of as route

__all__ = ["DESTROYS_POSITIONS", "ROUNDED", "Known", "may_have_taken"]

LOSES_OWNERS = ("crash", "lossy fail-over")
"""What may make a former owner the owner again: the coordinator has lost what it knew as well."""

DESTROYS_POSITIONS = (*LOSES_OWNERS, "destroy", "forget")
"""What may take the tokens out of the positions."""

T = TypeVar("T", Effect, Acquire, Commit, Look)

CRASH_LOSS = 2.5
"""Seconds before a crash of the server from which confirmed writes may be gone: it syncs its file once a second, and a
sync under way may be a second late; the rest is for the clock of the one who was told."""

UNREPLICATED = 0.5
"""Seconds before a fail-over from which confirmed writes may be gone where nobody waits for a replica."""

AFTER_FREEZE = 0.2
"""Seconds after the end of a freeze within which what was under way may still end."""

ROUNDED = 0.0002
"""Seconds that times in the journals may be off: they have four digits."""


class Known:
    """A history with what more than one check needs."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.letters: dict[tuple[int, EntryId], list[Letter]] = defaultdict(list)
        for letter in history.letters:
            self.letters[letter.source].append(letter)
        self.handled = {
            effect.serial
            for effect in history.effects
            if effect.result == "done" or (effect.result == "failed" and (effect.partition, effect.id) in self.letters)
        }
        self.tried = {effect.serial for effect in history.effects if effect.result != "cancelled"}
        self.logged = {entry.serial for entry in history.log}
        self.effects = _by_partition(history.effects)
        self.acquires = _by_partition([a for a in history.acquires if a.status == "OK"])
        self.commits = _by_partition(history.commits)
        self.looks = _by_partition(history.looks)
        self.partitions = {item.key: item.partition for item in (*history.log, *history.effects)}
        ids: dict[int, set[EntryId]] = defaultdict(set)
        for entry in history.log:
            ids[entry.partition].add(entry.id)
        if not history.complete:  # what is trimmed now was there
            for send in history.sends.values():
                if send.id is not None and send.key in self.partitions:
                    ids[self.partitions[send.key]].add(send.id)
        self.present = {partition: sorted(found) for partition, found in ids.items()}

    def when(self, item: Entry | Effect) -> float | None:
        """About when something came up, for the account; ``None`` if that is not known."""
        if isinstance(item, Effect):
            return item.started
        send = self.history.sends.get(item.serial)
        return None if send is None else send.invoked if send.ended is None else send.ended

    def reported(self, partition: int, since: float) -> bool:
        """Whether anybody said that data of a partition is gone, at ``since`` or later."""
        return any(_reports_loss(note, partition) for note in self.history.notes if note.at >= since)

    def disturbed(self, pid: int, start: float, end: float) -> bool:
        """Whether a process was kept from knowing the time, or what the others do, between two times."""
        return any(
            d.pid == pid
            and d.kind in ("freeze", "hold", "cut")
            and d.started <= end
            and d.ended + AFTER_FREEZE >= start
            for d in self.history.disturbances
        )

    def in_hand(self, effect: Effect) -> bool:
        """Whether an event that began late had been handed out before its process was frozen.

        That can be one per process, and of a partition that nothing else was under way in.
        """
        for d in self.history.disturbances:
            if d.pid == effect.pid and d.kind in ("freeze", "hold") and d.started <= effect.started:
                if effect.started > d.ended + AFTER_FREEZE:
                    continue
                earlier = [
                    e
                    for e in self.effects[effect.partition]
                    if e.token == effect.token and e.started < effect.started and e.ended > d.started
                ]
                return not earlier
        return False

    def partition_of(self, send: Send) -> int:
        """Where an event went, also if all that there was of its key is gone."""
        return self.partitions.get(send.key, route(send.key, PARTITIONS, DEFAULT_HASHER))

    def deleted(self, send: Send, partition: int) -> Disturbance | None:
        """When the entry of an event was deleted by hand."""
        return next(
            (
                d
                for d in self.history.disturbances
                if d.kind == "delete" and d.partition == partition and d.entry == send.id
            ),
            None,
        )

    def told(self, acquire: Acquire, committed: EntryId, since: float) -> bool:
        """Whether an owner said what it lost when it went on below what it had committed."""
        return any(
            (note.pid, note.fields.get("partition")) == (acquire.pid, acquire.partition)
            and since <= note.at <= acquire.answered + AFTER_FREEZE
            and (
                note.name == "LogReplaced"
                or (
                    note.name == "PartitionRewound"
                    and entry_id(note.fields["expected"]) >= committed
                    and entry_id(note.fields["stored"] or "0-0") <= acquire.offset
                )
            )
            for note in self.history.notes
        )

    def replaced(self, partition: int, since: float, until: float) -> bool:
        """Whether an owner has announced about then that a log was deleted and another has begun."""
        return any(
            note.name == "LogReplaced" and note.fields["partition"] == partition and since - 0.1 <= note.at <= until + 1
            for note in self.history.notes
        )

    def destroyed(self, partition: int) -> Iterator[Disturbance]:
        """When entries or positions of a partition were destroyed, or its server has crashed with unsaved writes."""
        for d in self.history.disturbances:
            if d.kind in ("crash", "destroy", "forget", "lossy fail-over") and d.partition in (None, partition):
                yield d

    def undone(self, partition: int, write: Acquire, until: float, by: Sequence[str] = LOSES_OWNERS) -> bool:
        """Whether the server may have lost until then that it let somebody acquire."""
        return any(
            d.kind in by and d.started <= until and may_have_taken(d, write.sent, write.answered)
            for d in self.destroyed(partition)
        )

    def failed_over(self, partition: int, since: float, until: float) -> bool:
        """Whether there may have been two primaries at some time between two times: who answered may be the old one."""
        return any(
            d.kind in ("fail-over", "lossy fail-over")
            and d.partition in (None, partition)
            and d.started <= until
            and d.ended >= since
            for d in self.history.disturbances
        )


def may_have_taken(d: Disturbance, sent: float, answered: float) -> bool:
    """Whether what destroyed data may have taken a write: not one from long before a crash, nor a later one."""
    match d.kind:
        case "crash":
            return sent <= d.started and d.started - CRASH_LOSS <= answered <= d.ended
        case "lossy fail-over":
            return d.started - UNREPLICATED <= answered <= d.ended
    return sent <= d.ended


def _reports_loss(note: Note, partition: int) -> bool:
    match note.name:
        case "PartitionRewound":
            return note.fields["partition"] == partition and note.fields["reason"] != "reset"
        case "LossDetected" | "SequenceGap" | "LogReplaced":
            return bool(note.fields["partition"] == partition)
    return False


def _by_partition(items: Iterable[T]) -> dict[int, list[T]]:
    found: dict[int, list[T]] = defaultdict(list)
    for item in items:
        found[item.partition].append(item)
    return found
