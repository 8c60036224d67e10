"""Schedules of members, producers and faults, drawn at random: who does what next, and what becomes of it.

The scripts and the server are real; members, producers, clock and network are those of ``simulation``, whose judge says
what must be true after every step. A run plays the same schedules each time, as many as fit into a run of all tests.
More of them, or others:

    RUNNEL_TEST_SCHEDULES=20000 RUNNEL_TEST_SEED=7 pytest tests/test_interleavings.py -k whatever

A schedule takes about 60 ms of processor time, of which the server has a quarter. Known races are in ``test_races.py``.
"""

import os
from collections.abc import Iterable
from itertools import product
from typing import Any

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

SCHEDULES = int(os.environ.get("RUNNEL_TEST_SCHEDULES", "120"))
LIMIT = pytest.mark.timeout(120 + SCHEDULES)
SEED = os.environ.get("RUNNEL_TEST_SEED")

REPLIES = [Reply.HEARD, Reply.HEARD, Reply.HEARD, Reply.LOST, Reply.LATE, Reply.HELD]
SOMEBODY = range(6)
TIMES = [10, 60, 120, 300, 650, 900, 2000]
AFTERWARDS = ["beat", "work", "take", "commit", "arrive"]


def any_of(*choices: Iterable[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One of each. A single draw: drawing is what takes most of the time of a schedule."""
    return st.sampled_from(list(product(*choices)))


class Schedule(RuleBasedStateMachine):
    """One schedule: who does what next is drawn; what a worker does of itself comes again and again."""

    def __init__(self, lab: Laboratory, mutant: Mutant, *, damage: bool) -> None:
        super().__init__()
        self.world = World(lab, mutant)
        self.damage = damage

    @initialize(crowd=any_of(range(1, 4), range(1, 4), range(1, 7)))
    def begin(self, crowd: tuple[int, int, int]) -> None:
        members, early, sent = crowd
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

    @rule(how=any_of(SOMEBODY, TIMES, REPLIES, REPLIES))
    def turn(self, how: tuple[int, int, Reply, Reply]) -> None:
        n, milliseconds, beat, work = how
        self.world.tick(milliseconds)
        if member := self.member(n):
            member.beat(beat)
            member.work(work)

    @rule(milliseconds=st.sampled_from(TIMES))
    def time_goes_by(self, milliseconds: int) -> None:
        self.world.tick(milliseconds)

    @rule(how=any_of(SOMEBODY, ["beat", "beat", "work", "acquire", "read", "take", "finish", "commit"], REPLIES))
    def step(self, how: tuple[int, str, Reply]) -> None:
        n, what, reply = how
        if member := self.member(n):
            member.step(what, reply)

    @rule(how=any_of(range(2), range(PARTITIONS), range(1, 5), REPLIES, [False] * 5 + [True]))
    def append(self, how: tuple[int, int, int, Reply, bool]) -> None:
        n, partition, number, reply, gives_up = how
        if gives_up:
            self.world.producers[n].give_up()
        self.world.producers[n].send(partition, number, reply)

    # Coming and going

    @precondition(lambda self: len(self.world.alive) < 4)
    @rule()
    def join(self) -> None:
        self.world.join()

    @rule(how=any_of(SOMEBODY, REPLIES))
    def leave(self, how: tuple[int, Reply]) -> None:
        n, reply = how
        if member := self.member(n):
            if member.leaving and not member.shares:
                member.farewell(reply)
            member.leave()

    @rule(how=any_of(SOMEBODY, [False, True]))
    def crash(self, how: tuple[int, bool]) -> None:
        n, noticed = how
        if member := self.member(n):
            member.crash(noticed=noticed)

    @rule(how=any_of(SOMEBODY, ["freeze", "block", "connect"], [False, True]))
    def disturb(self, how: tuple[int, str, bool]) -> None:
        n, what, on = how
        if self.world.alive:
            getattr(self.world.alive[n % len(self.world.alive)], what)(on)

    @rule(
        how=any_of(SOMEBODY, range(1, 15), [False, True], ["beat", "acquire", "commit", "nothing"], REPLIES),
        then=st.one_of(any_of(*(AFTERWARDS for _ in range(length))) for length in range(4)),
    )
    def absence(self, how: tuple[int, int, bool, str, Reply], then: tuple[str, ...]) -> None:
        """Somebody is away in the middle of something, and the others go on."""
        n, rounds, frozen, sent, reply = how
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

    @rule(n=st.sampled_from(SOMEBODY))
    def arrive(self, n: int) -> None:
        self.world.arrive(n)

    @rule(how=any_of([-HOUR, -500, 500, HOUR], SOMEBODY))
    def jump(self, how: tuple[int, int]) -> None:
        milliseconds, n = how
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
    @rule(how=any_of(range(PARTITIONS), range(9)))
    def delete(self, how: tuple[int, int]) -> None:
        partition, n = how
        keys, control = self.world.keys, self.world.control
        names = [control.group, control.members, control.targets, control.owners, control.parked]
        names += [keys.positions(0, "delays"), keys.log(partition), keys.registered(0), keys.sequence(partition, "p")]
        self.world.damage.delete(names[n])

    @precondition(lambda self: self.damage)
    @rule(how=any_of(range(PARTITIONS), range(4)))
    def trim(self, how: tuple[int, int]) -> None:
        self.world.damage.trim(*how)

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
    @rule(how=any_of(range(PARTITIONS), [False, True]))
    def reset(self, how: tuple[int, bool]) -> None:
        partition, end = how
        self.world.damage.reset_to(partition, end=end)

    # What must be true

    @invariant()
    def all_is_well(self) -> None:
        self.world.judge.check()

    def teardown(self) -> None:
        try:
            if not self.world.judge.broken:
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


@LIMIT
def test_whatever_workers_and_the_network_do_order_is_kept_and_nothing_is_lost(lab: Laboratory) -> None:
    play(lab, SCHEDULES, damage=False, hunt=SEED)


@LIMIT
def test_whatever_is_destroyed_nothing_is_lost_in_silence(lab: Laboratory) -> None:
    play(lab, SCHEDULES // 2, damage=True, hunt=SEED)


@pytest.mark.parametrize("name", MUTANTS)
def test_schedules_find_what_is_wrong(lab: Laboratory, name: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(Violation, match=mutant.breaks):
        play(lab, 150, damage=False, mutant=mutant)
