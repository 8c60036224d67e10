"""What is wrong with the positions in a history: C2."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate

from faults.history import Acquire, Commit, EntryId, Look
from faults.known import ROUNDED, Known
from faults.violation import Violation

__all__ = ["commits_form_a_chain", "positions_follow_the_handlers", "positions_only_grow", "rollbacks_are_told"]

TAKEN = ("OK", "DUP")
"""The answers to a commit by which the position is where it says."""


def commits_form_a_chain(known: Known) -> Iterator[Violation]:
    """C2: each accepted commit begins where an accepted one, or an acquire, has ended; none begins twice.

    A commit whose answer was never read may have been accepted: an acquire that returns its end proves it.
    """
    for partition, commits in known.commits.items():
        began: dict[tuple[int, EntryId], Commit] = {}
        ends: dict[int, set[EntryId]] = defaultdict(set)
        for acquire in known.acquires[partition]:
            ends[acquire.token].add(acquire.offset)
        for commit in commits:
            if commit.status not in TAKEN:
                continue
            ends[commit.token].add(commit.offset)
            if commit.offset < commit.previous:
                yield Violation("C2", f"a commit went back: {commit}", commit.answered, partition)
        for commit in commits:
            if commit.status != "OK" or commit.offset == commit.previous:
                continue
            if commit.previous not in ends[commit.token]:
                yield Violation("C2", f"a commit begins where nothing has ended: {commit}", commit.answered, partition)
            other = began.setdefault((commit.token, commit.previous), commit)
            if other is not commit and not _rewound(known, commit, other):
                yield Violation(
                    "C2", f"two commits begin at one position: {other} and {commit}", commit.answered, partition
                )


def _rewound(known: Known, *commits: Commit) -> bool:
    """Whether the partition was acquired again between commits, which is how a rewind goes on."""
    first, last = min(c.sent for c in commits), max(c.answered for c in commits)
    return any(first <= a.answered <= last for a in known.acquires[commits[0].partition])


def positions_only_grow(known: Known) -> Iterator[Violation]:
    """C2: whenever the server was asked, the position was not lower than before, nor than what was committed.

    Unless it has lost data, or another server has just taken over: one of the two had what was not confirmed yet.
    """
    for partition, looks in known.looks.items():
        before: Look | None = None
        commits = [c for c in reversed(known.commits[partition]) if c.status == "OK"]
        committed: Commit | None = None
        for look in looks:
            while commits and commits[-1].answered < look.sent:
                latest = commits.pop()
                committed = latest if committed is None or latest.offset > committed.offset else committed
            if before is not None and look.offset < before.offset and not _lossy(known, partition, before, look):
                yield Violation("C2", f"the position fell: {look} after {before}", look.answered, partition)
            excused = known.failed_over(partition, look.sent, look.answered) or any(
                d.started <= look.answered for d in known.destroyed(partition)
            )
            if committed is not None and look.offset < committed.offset and not excused:
                text = f"the position is below what was committed: {look} after {committed}"
                yield Violation("C2", text, look.answered, partition)
            before = look


def positions_follow_the_handlers(known: Known) -> Iterator[Violation]:
    """C2: whatever says how far a partition is, all that lies before was handled by then.

    After a fail-over nothing is said about a partition: ids below those of what was lost are given out anew.
    """
    for partition, ids in known.present.items():
        handled: dict[EntryId, float] = {}
        for effect in known.effects[partition]:
            if effect.result == "done" or (effect.result == "failed" and (partition, effect.id) in known.letters):
                handled[effect.id] = min(effect.ended, handled.get(effect.id, float("inf")))
        times = [handled.get(entry, float("inf")) for entry in ids]
        until = list(accumulate(times, max))
        told = [
            *((commit.sent, commit.offset, commit) for commit in known.commits[partition] if commit.status in TAKEN),
            *((acquire.answered, acquire.offset, acquire) for acquire in known.acquires[partition]),
            *((look.answered, look.offset, look) for look in known.looks[partition]),
        ]
        for at, offset, what in told:
            before = bisect_right(ids, offset)
            if before and until[before - 1] > at + ROUNDED and not known.failed_over(partition, 0.0, at):
                first = next(entry for entry, time in zip(ids, times, strict=True) if time > at + ROUNDED)
                yield Violation("C2", f"ahead of the handlers, {first} the first: {what}", at, partition)
                break


def _lossy(known: Known, partition: int, since: Look, until: Look) -> bool:
    """Whether data was destroyed between two looks, or an owner noticed between them that the log had been replaced.

    Or another server took over, which need not have what was not confirmed yet.
    """
    return known.failed_over(partition, since.sent, until.answered) or any(
        d.started <= until.answered and (d.ended >= since.sent or known.replaced(partition, since.sent, until.answered))
        for d in known.destroyed(partition)
    )


def rollbacks_are_told(known: Known) -> Iterator[Violation]:
    """C2: who must go on below what it had committed says so, and what is gone."""
    for partition, acquires in known.acquires.items():
        before: dict[tuple[int, int], Acquire] = {}
        for acquire in acquires:
            earlier = before.get((acquire.pid, acquire.token))
            before[acquire.pid, acquire.token] = acquire
            if earlier is None:
                continue
            committed = max(
                (
                    commit.offset
                    for commit in known.commits[partition]
                    if (commit.pid, commit.token) == (acquire.pid, acquire.token)
                    and commit.status in TAKEN
                    and earlier.answered <= commit.answered <= acquire.sent
                ),
                default=(0, 0),
            )
            if acquire.offset < committed and not known.told(acquire, committed, earlier.answered):
                text = f"nobody said that {committed} was rolled back to {acquire}"
                yield Violation("C2", text, acquire.answered, partition)
