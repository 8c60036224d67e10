"""Thousands of schedules of members, producers and faults, each some milliseconds long.

The scripts and the server are real; members, producers, clock and network are those of ``simulation``, whose judge says
what must be true after every step. A run plays the same schedules each time. More of them, or new ones:

    RUNNEL_TEST_SCHEDULES=20000 RUNNEL_TEST_SEED=7 pytest tests/test_interleavings.py -k whatever
"""

import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from simulation.calls import Reply
from simulation.judge import Violation
from simulation.laboratory import CORRECT, Laboratory, Mutant
from simulation.members import Member
from simulation.mutants import MUTANTS
from simulation.seats import PARTITIONS
from simulation.world import HOUR, World

SCHEDULES = int(os.environ.get("RUNNEL_TEST_SCHEDULES", "2000"))
SEED = os.environ.get("RUNNEL_TEST_SEED")

replies = st.sampled_from([Reply.HEARD, Reply.HEARD, Reply.HEARD, Reply.LOST, Reply.LATE, Reply.HELD])
small = st.integers(0, 5)
times = st.sampled_from([10, 60, 120, 300, 650, 900, 2000])
partitions = st.integers(0, PARTITIONS - 1)


class Schedule(RuleBasedStateMachine):
    """One schedule: who does what next is drawn; what a worker does of itself comes again and again."""

    def __init__(self, lab: Laboratory, mutant: Mutant, *, damage: bool) -> None:
        super().__init__()
        self.world = World(lab, mutant)
        self.damage = damage

    @initialize(members=st.integers(1, 3), early=st.integers(1, 3), sent=st.integers(1, 6))
    def begin(self, members: int, early: int, sent: int) -> None:
        for partition in range(0, PARTITIONS, early):
            self.world.producers[1].send(partition, sent)
        for _ in range(members):
            self.world.join()
        self.world.everybody(2)
        for partition in range(PARTITIONS):
            self.world.producers[0].send(partition, sent)

    def member(self, n: int) -> Member | None:
        awake = [member for member in self.world.alive if not member.frozen]
        return awake[n % len(awake)] if awake else None

    # What workers and producers do

    @rule(rounds=st.integers(1, 3))
    def everybody(self, rounds: int) -> None:
        self.world.everybody(rounds)

    @rule(n=small, milliseconds=times, beat=replies, work=replies)
    def turn(self, n: int, milliseconds: int, beat: Reply, work: Reply) -> None:
        self.world.tick(milliseconds)
        if member := self.member(n):
            member.beat(beat)
            member.work(work)

    @rule(milliseconds=times)
    def time_goes_by(self, milliseconds: int) -> None:
        self.world.tick(milliseconds)

    @rule(n=small, reply=replies)
    def beat(self, n: int, reply: Reply) -> None:
        if member := self.member(n):
            member.beat(reply)

    @rule(n=small, what=st.sampled_from(["work", "acquire", "read", "take", "finish", "commit"]), reply=replies)
    def step(self, n: int, what: str, reply: Reply) -> None:
        if member := self.member(n):
            member.step(what, reply)

    @rule(
        n=st.integers(0, 1), partition=partitions, number=st.integers(1, 4), reply=replies, gives_up=st.integers(0, 9)
    )
    def append(self, n: int, partition: int, number: int, reply: Reply, gives_up: int) -> None:
        if gives_up == 9:
            self.world.producers[n].give_up()
        self.world.producers[n].send(partition, number, reply)

    # Coming and going

    @precondition(lambda self: len(self.world.alive) < 4)
    @rule()
    def join(self) -> None:
        self.world.join()

    @rule(n=small, reply=replies)
    def leave(self, n: int, reply: Reply) -> None:
        if member := self.member(n):
            if member.leaving and not member.shares:
                member.farewell(reply)
            member.leave()

    @rule(n=small, noticed=st.booleans())
    def crash(self, n: int, noticed: bool) -> None:
        if member := self.member(n):
            member.crash(noticed=noticed)

    @rule(n=small, how=st.sampled_from(["freeze", "block", "connect"]), on=st.booleans())
    def disturb(self, n: int, how: str, on: bool) -> None:
        if self.world.alive:
            getattr(self.world.alive[n % len(self.world.alive)], how)(on)

    @rule(
        n=small,
        rounds=st.integers(1, 14),
        frozen=st.booleans(),
        sent=st.sampled_from(["beat", "acquire", "commit", "nothing"]),
        reply=replies,
        then=st.lists(st.sampled_from(["beat", "work", "take", "commit", "arrive"]), max_size=3),
    )
    def absence(self, n: int, rounds: int, frozen: bool, sent: str, reply: Reply, then: list[str]) -> None:
        """Somebody is away in the middle of something, and the others go on."""
        if member := self.member(n):
            if sent == "acquire":
                member.beat()
            member.step(sent, reply)
            (member.freeze if frozen else member.block)(True)
            self.world.everybody(rounds)
            member.freeze(False)
            member.block(False)
            for what in then:
                if what == "arrive":
                    self.world.arrive(n)
                member.step(what, Reply.HEARD)

    # The network and the server

    @rule(n=small)
    def arrive(self, n: int) -> None:
        self.world.arrive(n)

    @rule(milliseconds=st.sampled_from([-HOUR, -500, 500, HOUR]), n=small)
    def jump(self, milliseconds: int, n: int) -> None:
        self.world.jump(milliseconds)
        if member := self.member(n):
            member.beat()
            member.step("work", Reply.HEARD)

    @rule(what=st.sampled_from(["restart", "script flush", "look for losses"]))
    def server(self, what: str) -> None:
        match what:
            case "restart":
                self.world.restart()
            case "script flush":
                self.world.lab.ask("SCRIPT", "FLUSH")
            case "look for losses":
                self.world.look_for_losses()

    # What destroys

    @precondition(lambda self: self.damage)
    @rule(partition=partitions, n=st.integers(0, 8))
    def delete(self, partition: int, n: int) -> None:
        keys, control = self.world.keys, self.world.control
        names = [control.group, control.members, control.targets, control.owners, control.parked]
        names += [keys.positions(0, "delays"), keys.log(partition), keys.registered(0), keys.sequence(partition, "p")]
        self.world.damage.delete(names[n])

    @precondition(lambda self: self.damage)
    @rule(partition=partitions, keep=st.integers(0, 3))
    def trim(self, partition: int, keep: int) -> None:
        self.world.damage.trim(partition, keep)

    @precondition(lambda self: self.damage)
    @rule()
    def remember(self) -> None:
        self.world.damage.remember()

    @precondition(lambda self: self.world.damage.snapshot is not None)
    @rule(slot=st.sampled_from(["", "", "control", "data"]))
    def roll_back(self, slot: str) -> None:
        self.world.damage.roll_back(slot)

    @precondition(lambda self: self.damage)
    @rule()
    def flush(self) -> None:
        self.world.damage.flush()

    @precondition(lambda self: self.damage)
    @rule(partition=partitions, forward=st.booleans())
    def reset(self, partition: int, forward: bool) -> None:
        self.world.damage.reset_to(partition, end=forward)

    # What must be true

    @invariant()
    def all_is_well(self) -> None:
        self.world.judge.check()

    def teardown(self) -> None:
        try:
            self.world.heal()
        finally:
            self.world.close()


def play(lab: Laboratory, schedules: int, *, damage: bool, mutant: Mutant = CORRECT, hunt: str | None = None) -> None:
    """Run so many schedules, and shrink the first that breaks a promise."""

    def machine() -> Schedule:
        return Schedule(lab, mutant, damage=damage)

    if hunt is not None:
        seed(int(hunt))(machine)
        machine._hypothesis_internal_use_seed = int(hunt)
    phases = [Phase.generate] if mutant is not CORRECT else [Phase.generate, Phase.shrink]
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=schedules,
            stateful_step_count=25,
            deadline=None,
            derandomize=hunt is None,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


def test_whatever_workers_and_the_network_do_order_is_kept_and_nothing_is_lost(lab: Laboratory) -> None:
    play(lab, SCHEDULES, damage=False, hunt=SEED)


def test_whatever_is_destroyed_nothing_is_lost_in_silence(lab: Laboratory) -> None:
    play(lab, SCHEDULES // 2, damage=True, hunt=SEED)


@pytest.mark.parametrize("name", MUTANTS)
def test_schedules_find_what_is_wrong(lab: Laboratory, name: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(Violation, match=mutant.breaks):
        play(lab, 1000, damage=False, mutant=mutant)
