"""What is wrong with who acts in a history: C4 and C5."""

from collections.abc import Iterator

from faults.history import Acquire, Effect
from faults.known import DESTROYS_POSITIONS, ROUNDED, Known
from faults.violation import Violation

__all__ = ["longest_overlap", "longest_standstill", "one_owner_acts", "only_owners_act", "tokens_fence"]


def tokens_fence(known: Known) -> Iterator[Violation]:
    """C4: tokens grow, each belongs to one process, and nothing is accepted under an old one.

    Where the server has lost that somebody acquired, the one before may be the owner again, under its token.
    """
    for partition, acquires in known.acquires.items():
        highest: Acquire | None = None
        owner: dict[int, int] = {}
        for acquire in acquires:
            if owner.setdefault(acquire.token, acquire.pid) != acquire.pid:
                yield Violation("C4", f"one token, two processes: {acquire}", acquire.answered, partition)
            fell = highest is not None and acquire.token < highest.token and acquire.sent > highest.answered
            if highest is not None and fell and not known.undone(partition, highest, acquire.answered):
                yield Violation("C4", f"a token fell: {acquire} after {highest}", acquire.answered, partition)
            if highest is None or acquire.token > highest.token:
                highest = acquire
        for commit in known.commits[partition]:
            if commit.status != "OK":
                continue
            for acquire in acquires:
                if acquire.token > commit.token and acquire.answered < commit.sent:
                    if known.undone(partition, acquire, commit.answered):
                        continue
                    text = f"{commit} was accepted after {acquire}"
                    yield Violation("C4", text, commit.answered, partition)
                    break
        for look in known.looks[partition]:
            for acquire in acquires:
                if acquire.token > look.token and acquire.answered < look.sent:
                    if known.undone(partition, acquire, look.answered, DESTROYS_POSITIONS):
                        continue
                    if known.failed_over(partition, acquire.sent, look.answered):
                        continue
                    text = f"the server has an older token, {look}, after {acquire}"
                    yield Violation("C4", text, look.answered, partition)
                    break


def only_owners_act(known: Known) -> Iterator[Violation]:
    """C4: whoever handles an event has acquired its partition before, under that token."""
    for partition, effects in known.effects.items():
        taken: dict[tuple[int, int], float] = {}
        for acquire in known.acquires[partition]:
            taken.setdefault((acquire.pid, acquire.token), acquire.answered)
        for effect in effects:
            since = taken.get((effect.pid, effect.token))
            if since is None or effect.started < since - ROUNDED:
                yield Violation("C4", f"handled by who had not acquired: {effect}", effect.started, partition)


def one_owner_acts(known: Known) -> Iterator[Violation]:
    """C5: handlers of two owners of a partition never run at the same time, unless the older one was disturbed.

    Even then, it begins no event after its successor has taken over, but for one that it had in its hand when it was
    frozen; or where the server has lost that there is a successor.
    """
    for partition, effects in known.effects.items():
        for effect in effects:
            later = [
                a
                for a in known.acquires[partition]
                if a.token > effect.token
                and a.answered < effect.started
                and not known.undone(partition, a, effect.started)
            ]
            if later and not known.in_hand(effect):
                yield Violation("C5", f"an old owner began: {effect} after {later[0]}", effect.started, partition)
        for older, newer in _at_once(effects):
            if not known.disturbed(older.pid, older.started, older.ended):
                yield Violation("C5", f"two owners at once: {older} and {newer}", newer.started, partition)


def longest_overlap(known: Known) -> float:
    """For how long an owner that was frozen or cut off went on with an event beside its successor, in seconds."""
    pairs = (pair for effects in known.effects.values() for pair in _at_once(effects))
    return max((older.ended - newer.started for older, newer in pairs), default=0.0)


def longest_standstill(known: Known) -> float:
    """For how long nobody was at a partition in which an event was waiting, in seconds; once its first was begun."""
    longest = 0.0
    for effects in known.effects.values():
        busy = 0.0
        for effect in sorted(effects, key=lambda effect: effect.started):
            send = known.history.sends.get(effect.serial)
            if send is not None and busy:
                waiting = send.invoked if send.ended is None else send.ended
                longest = max(longest, effect.started - max(busy, waiting))
            busy = max(busy, effect.ended)
    return longest


def _at_once(effects: list[Effect]) -> Iterator[tuple[Effect, Effect]]:
    """What an owner was at when a newer one began, with that."""
    latest: Effect | None = None  # of those begun so far, the one with the highest token that ends last
    for effect in sorted(effects, key=lambda effect: effect.started):
        if latest is not None and effect.token < latest.token:
            continue
        if latest is not None and effect.token > latest.token and effect.started < latest.ended:
            yield latest, effect
        if latest is None or effect.token > latest.token or effect.ended > latest.ended:
            latest = effect
