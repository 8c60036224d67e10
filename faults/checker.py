"""Says what is wrong with a history.

After Jepsen's checkers for Kafka and for NATS: nothing here knows what was done, only what was promised. C9 is
about the end of a run, and done by the stage.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator

from faults.history import Acquire, Commit, Effect, EntryId, History, Send, Serial
from faults.known import Known, may_have_taken
from faults.ownership import one_owner_acts, only_owners_act, tokens_fence
from faults.positions import (
    commits_form_a_chain,
    positions_follow_the_handlers,
    positions_only_grow,
    rollbacks_are_told,
)
from faults.violation import Violation

__all__ = ["CHECKS", "Violation", "check"]

UNTIL_REWOUND = 2.0
"""Seconds that a worker may go on with what it has read from a primary that is none any more."""


def check(history: History) -> list[Violation]:
    """Every violation, the earliest of each check first."""
    known = Known(history)
    return [violation for test in CHECKS for violation in test(known)]


def nothing_is_lost(known: Known) -> Iterator[Violation]:
    """C1: what a producer was told is sent was handled, or its loss by the server was reported and is a tail.

    And what the log has was handled, whatever its producer was told.
    """
    for entry in known.history.log:
        sent = known.history.sends.get(entry.serial)
        if entry.serial not in known.handled and (sent is None or sent.outcome != "O"):
            yield Violation("C1", f"{entry} was not handled", known.when(entry), entry.partition)
    missing: dict[int, list[Send]] = defaultdict(list)
    for send in known.history.sends.values():
        if send.outcome == "O" and send.serial not in known.handled:
            missing[known.partition_of(send)].append(send)
    for partition, sends in missing.items():
        for send in sends:
            reason = _unexcused(known, send, partition)
            if reason:
                yield Violation("C1", f"lost: {_name(send)}, sent as {send.id}: {reason}", send.ended, partition)
        deleted = [d for send in sends if (d := known.deleted(send, partition)) is not None]
        if deleted:
            since = min(d.started for d in deleted)
            told = sum(
                note.fields["entries"]
                for note in known.history.notes
                if note.name == "LossDetected" and note.fields["partition"] == partition and note.at >= since
            )
            if told < len(deleted):
                text = f"{len(deleted)} entries were deleted unread, and the loss of {told} was reported"
                yield Violation("C1", text, since, partition)


def _unexcused(known: Known, send: Send, partition: int) -> str:
    assert send.ended is not None
    assert send.id is not None
    if send.serial in known.logged:
        return "it is in the log, and was not handled"
    if (d := known.deleted(send, partition)) is not None:
        return "" if known.reported(partition, d.started) else "it was deleted, and nobody has reported it"
    for d in known.destroyed(partition):
        if d.kind == "forget":
            continue  # that takes no events
        if not may_have_taken(d, send.invoked, send.ended):
            continue
        if (skipped := _handled_behind(known, partition, send, d.started)) is not None:
            return f"it is gone with the {d.kind}, but had been skipped: {skipped}"
        if not known.reported(partition, d.started):
            return f"gone with the {d.kind}, and nobody has reported it"
        if d.kind != "destroy" and (later := _kept_after(known, partition, send, d.started)):
            return f"gone with the {d.kind}, but {later} behind it was kept"
        return ""
    return "it is not in the log, and nothing has happened that may take it"


def _kept_after(known: Known, partition: int, send: Send, crash: float) -> EntryId | None:
    """An entry of the same partition that was confirmed before the crash, behind the lost one, and kept."""
    for other in known.history.sends.values():
        if (
            other.id is not None
            and send.id is not None
            and other.ended is not None
            and other.ended < crash
            and other.serial in known.logged
            and other.id > send.id
            and known.partitions.get(other.key) == partition
        ):
            return other.id
    return None


def _handled_behind(known: Known, partition: int, send: Send, before: float) -> Effect | None:
    """What was handled of the same partition while an event that came before it, and had never failed, was not."""
    assert send.id is not None
    if send.serial in known.tried:
        return None
    effects = known.effects[partition]
    return next((effect for effect in effects if effect.id > send.id and effect.started < before), None)


def order_is_kept(known: Known) -> Iterator[Violation]:
    """C3: each owner handles the entries behind the position it was given, one after the other, without a gap.

    And the log itself has the events of a key in the order in which they were sent.
    """
    for partition, acquires in known.acquires.items():
        log = known.present.get(partition, [])
        for acquire in acquires:
            if (behind := _behind_the_committed(known, acquire)) is not None:
                text = f"began behind what was committed: {acquire} after {behind}"
                yield Violation("C3", text, acquire.answered, partition)
            until = min(
                (a.sent for a in acquires if a.token == acquire.token and a.sent > acquire.sent), default=float("inf")
            )
            run = [
                e for e in known.effects[partition] if e.token == acquire.token and acquire.sent <= e.started < until
            ]
            yield from _contiguous(partition, acquire, run, log)
    last: dict[str, tuple[int, EntryId]] = {}
    for entry in sorted(known.history.log, key=lambda entry: entry.id):
        before = last.get(entry.key)
        if before is not None and entry.number <= before[0]:
            text = f"the log has {entry} behind number {before[0]} of its key"
            yield Violation("C3", text, known.when(entry), entry.partition)
        last[entry.key] = (entry.number, entry.id)


def _behind_the_committed(known: Known, acquire: Acquire) -> Commit | None:
    """A commit that was accepted before an acquire was sent, and that it does not continue; unless data was lost."""
    accepted = [c for c in known.commits[acquire.partition] if c.status in ("OK", "DUP") and c.answered < acquire.sent]
    furthest = max(accepted, key=lambda commit: commit.offset, default=None)
    if furthest is None or acquire.offset >= furthest.offset:
        return None
    lossy = any(d.started <= acquire.answered for d in known.destroyed(acquire.partition))
    lossy = lossy or known.failed_over(acquire.partition, acquire.sent, acquire.answered)
    return None if lossy else furthest


def _contiguous(partition: int, acquire: Acquire, run: list[Effect], log: list[EntryId]) -> Iterator[Violation]:
    at = last = acquire.offset
    for effect in sorted(run, key=lambda e: e.started):
        if effect.id <= last:
            yield Violation("C3", f"went back to {effect} behind {last} under one token", effect.started, partition)
            return
        last = effect.id
        if log[bisect_right(log, effect.id) - 1 : bisect_right(log, effect.id)] != [effect.id]:
            continue  # lost by the server: what has taken its place may have a lower id, and must come before others
        skipped = log[bisect_right(log, at) : bisect_right(log, effect.id)]
        skipped = [entry for entry in skipped if entry != effect.id]
        if skipped:
            yield Violation(
                "C3",
                f"skipped {len(skipped)} entries, {skipped[0]} the first: {effect} came behind {at}, {acquire}",
                effect.started,
                partition,
            )
            return
        at = effect.id


def bytes_agree(known: Known) -> Iterator[Violation]:
    """C6: what was sent, what the log holds and what was handled is the same."""
    for item in (*known.history.log, *known.history.effects):
        send = known.history.sends.get(item.serial)
        if send is not None and (item.check, item.key, item.number) != (send.check, send.key, send.number):
            yield Violation("C6", f"{item} is not what was sent: {send}", known.when(item), item.partition)


def nothing_is_made_up(known: Known) -> Iterator[Violation]:
    """C7: nothing is handled that nobody sent, and what was refused does not appear."""
    for item in (*known.history.log, *known.history.effects):
        send = known.history.sends.get(item.serial)
        if send is None:
            yield Violation("C7", f"nobody has sent {item}", known.when(item), item.partition)
        elif send.outcome == "F":
            yield Violation("C7", f"{item} was refused", known.when(item), item.partition)


def nothing_is_doubled(known: Known) -> Iterator[Violation]:
    """C8: each event is in the log once. Unless the server has lost data, it was so at all times.

    At a fail-over, it loses what was not confirmed yet: that may be read, and is then sent once more.
    """
    found: dict[Serial, EntryId] = {}
    for entry in known.history.log:
        if found.setdefault(entry.serial, entry.id) != entry.id:
            text = f"{entry} is in the log as {found[entry.serial]} as well"
            yield Violation("C8", text, known.when(entry), entry.partition)
    for effect in known.history.effects:
        if found.setdefault(effect.serial, effect.id) != effect.id:
            if any(d.kind != "forget" for d in known.destroyed(effect.partition)):
                continue
            if known.failed_over(effect.partition, effect.started - UNTIL_REWOUND, effect.ended):
                continue
            text = f"{effect} was in the log as {found[effect.serial]} as well"
            yield Violation("C8", text, effect.started, effect.partition)


def letters_agree(known: Known) -> Iterator[Violation]:
    """C10: what has failed for good is a dead letter, once and to the byte; nothing else is."""
    last: dict[tuple[int, EntryId], Effect] = {}
    failed: set[tuple[int, EntryId]] = set()
    for effect in sorted(known.history.effects, key=lambda effect: effect.ended):
        if effect.result != "cancelled":
            last[effect.partition, effect.id] = effect
        if effect.result == "failed":
            failed.add((effect.partition, effect.id))
    for source, effect in last.items():
        if effect.result == "failed" and source not in known.letters:
            if any(d.ended >= effect.started for d in known.destroyed(effect.partition)):
                continue  # the letter may have been destroyed as well
            yield Violation("C10", f"no dead letter of {effect}", effect.ended, effect.partition)
    for source, letters in known.letters.items():
        at = last[source].ended if source in last else None
        if len(letters) > 1:
            yield Violation("C10", f"{len(letters)} dead letters of {source}: {letters}", at, source[0])
        if source not in failed:
            yield Violation("C10", f"a dead letter of what has not failed: {letters[0]}", at, source[0])
        elif letters[0].check != last[source].check:
            yield Violation("C10", f"{letters[0]} does not hold what has failed: {last[source]}", at, source[0])


def _name(send: Send) -> str:
    return f"{send.serial[0]} {send.serial[1]} ({send.key} {send.number})"


CHECKS: tuple[Callable[[Known], Iterator[Violation]], ...] = (
    nothing_is_lost,
    commits_form_a_chain,
    positions_only_grow,
    positions_follow_the_handlers,
    rollbacks_are_told,
    order_is_kept,
    tokens_fence,
    only_owners_act,
    one_owner_acts,
    bytes_agree,
    nothing_is_made_up,
    nothing_is_doubled,
    letters_agree,
)
