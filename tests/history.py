"""Reads what worker processes wrote down, and says what is wrong with it."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Effect:
    """One line of a history: one event handled once. Times in seconds of CLOCK_MONOTONIC."""

    started: float
    ended: float
    pid: int
    partition: int
    token: int
    entry_id: tuple[int, int]
    key: str
    number: int


def read_history(path: Path) -> list[Effect]:
    """The effects in the order in which they ended. A torn last line of a killed process is left out."""
    effects = []
    for line in path.read_text().splitlines():
        parts = line.split(" ")
        if len(parts) == 8 and parts[7]:
            milliseconds, _, sequence = parts[5].partition("-")
            effects.append(
                Effect(
                    float(parts[0]),
                    float(parts[1]),
                    int(parts[2]),
                    int(parts[3]),
                    int(parts[4]),
                    (int(milliseconds), int(sequence)),
                    parts[6],
                    int(parts[7]),
                )
            )
    return sorted(effects, key=lambda effect: effect.ended)


def violations(effects: list[Effect], sent: dict[str, int], *, overlaps: bool = False) -> list[str]:
    """What breaks the promises, in words; empty if all is well.

    Arguments:
        effects: the history.
        sent: per key, how many events were sent; their numbers are 0, 1, 2, ...
        overlaps: two owners may have run at once, because one was frozen in the middle of its handler.
    """
    found = []
    by_key: dict[str, list[Effect]] = defaultdict(list)
    by_partition: dict[int, list[Effect]] = defaultdict(list)
    for effect in effects:
        by_key[effect.key].append(effect)
        by_partition[effect.partition].append(effect)
    for key, count in sent.items():
        missing = set(range(count)) - {effect.number for effect in by_key[key]}
        if missing:
            found.append(f"lost: {key} {sorted(missing)[:5]} ({len(missing)} of {count})")
        if foreign := {effect.number for effect in by_key[key]} - set(range(count)):
            found.append(f"never sent: {key} {sorted(foreign)[:5]}")
    for partition, history in by_partition.items():
        last: dict[int, Effect] = {}  # by token
        highest: Effect | None = None
        for effect in history:
            before = last.get(effect.token)
            if before is not None and effect.entry_id <= before.entry_id:
                found.append(f"out of order under one token in partition {partition}: {before} then {effect}")
            if before is not None and effect.pid != before.pid:
                found.append(f"one token, two processes in partition {partition}: {before} and {effect}")
            last[effect.token] = effect
            if highest is None or effect.token > highest.token:
                if highest is not None and effect.started < highest.ended and not overlaps:
                    found.append(f"two owners at once in partition {partition}: {highest} and {effect}")
                highest = effect
            elif effect.token < highest.token:
                if not overlaps:
                    found.append(f"an old owner acted in partition {partition}: {effect} after {highest}")
            else:
                highest = effect
        # What a token begins with must follow, without a gap, from what was done before it.
        done = (0, 0)
        ids = sorted({effect.entry_id for effect in history})
        for token in sorted(last):
            mine = [effect.entry_id for effect in history if effect.token == token]
            after = [entry_id for entry_id in ids if entry_id > done]
            if after and mine[0] > after[0]:
                found.append(f"partition {partition}: token {token} skipped {after[0]} and began at {mine[0]}")
            done = max(done, mine[-1])
    return found


def repeats(effects: list[Effect]) -> int:
    """How many effects are of an event that was handled before."""
    return len(effects) - len({(effect.key, effect.number) for effect in effects})
