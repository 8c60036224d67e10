"""What plays demand besides the checker: each demand can fail, and a play that has shown nothing does."""

from collections.abc import Callable, Iterable
from random import Random
from types import SimpleNamespace
from typing import cast

import pytest
from faults.checker import Violation
from faults.history import Acquire, Disturbance, Effect, History, Note, Send
from faults.plays.play import Scene
from faults.plays.processes import (
    fenced_in_time,
    hand_overs,
    handed_over_soon,
    never_idle,
    only_what_must_moves,
    taken_over_soon,
)
from faults.plays.servers import producers_had_to_wait
from faults.stage import Stage

Judge = Callable[[History, Scene], Iterable[Violation]]

ONE, TWO = 101, 202
"""Processes."""


def handed_over() -> History:
    """A partition is handed from one worker to another, where two events are waiting."""
    history = History()
    for n in range(2):
        history.sends["p", n] = Send(1.0, ("p", n), "key", n, 0, "O", 1.1, (10 + n, 0))
        history.effects.append(Effect(5.4 + n, 5.5 + n, TWO, 0, 2, (10 + n, 0), "key", n, ("p", n), 0))
    history.acquires = [
        Acquire(1.0, 1.1, ONE, 0, 1, "OK", (0, 0), 0, rolled_back=False),
        Acquire(5.1, 5.2, TWO, 0, 2, "OK", (0, 0), 0, rolled_back=False),
    ]
    history.notes = [
        Note(0.9, ONE, "MemberJoined", {"processor": "record"}),
        Note(0.9, TWO, "MemberJoined", {"processor": "record"}),
        Note(5.0, ONE, "PartitionReleased", {"partition": 0, "token": 1}),
    ]
    return history


def test_a_hand_over_lasts_until_an_event_that_waits_is_begun() -> None:
    history = handed_over()
    assert hand_overs(history) == pytest.approx([0.4])
    history.sends["p", 0].ended = 5.35
    assert hand_overs(history) == pytest.approx([0.2]), "it came later, so that the acquire counts"


def test_a_partition_that_moves_must_come_from_one_who_leaves_or_go_to_one_who_has_come() -> None:
    history = handed_over()
    history.notes[1] = Note(-10.0, TWO, "MemberJoined", {"processor": "record"})
    (found,) = only_what_must_moves(history)
    assert "moved without need" in found.text
    history.disturbances = [Disturbance("term", 4.0, 4.0, ONE)]
    assert list(only_what_must_moves(history)) == []
    history.disturbances = []
    history.notes[1] = Note(4.0, TWO, "MemberJoined", {"processor": "record"})
    assert list(only_what_must_moves(history)) == []


@pytest.mark.parametrize(
    "judge", [taken_over_soon, fenced_in_time, never_idle, handed_over_soon, producers_had_to_wait]
)
def test_a_play_that_has_shown_nothing_is_broken(judge: Judge) -> None:
    history = History(disturbances=[Disturbance("memory", 1.0, 2.0)])
    scene = Scene(cast("Stage", SimpleNamespace(session=3.0)), Random(1), 20.0, proxied=False)
    assert any("not what was played" in found.text for found in judge(history, scene))
