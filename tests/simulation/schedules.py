"""Schedules, drawn at random: who does what next, and what becomes of it. The judge looks after every step.

Also a program, which the tests start once per processor, and which looks further for whoever wants to know::

    PYTHONPATH=tests python -m simulation.schedules --schedules 20000 --seed 7 [--damage] [--server redis-server]

A run draws the same schedules each time for a seed. One that breaks a promise is shrunk, and told step by step.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from runnel.server import EmbeddedServer
from simulation.calls import Reply
from simulation.laboratory import CORRECT, Laboratory, Mutant
from simulation.members import Member
from simulation.seats import PARTITIONS
from simulation.world import HOUR, World

__all__ = ["play"]

T = TypeVar("T")

STEPS = 5
"""Steps that are drawn together. Drawing each by itself would be half of the time that a schedule takes."""

BYTES = 4
"""Of a step."""

LENGTH = 25
"""Steps of a schedule at most."""

REPLIES = [Reply.HEARD, Reply.HEARD, Reply.HEARD, Reply.LOST, Reply.LATE, Reply.HELD]
TIMES = [10, 60, 120, 300, 650, 900, 2000]
WORK = ["beat", "work", "take", "commit", "arrive"]


class Dice:
    """Choices, taken from a number; zeros are the first choice each time, to which schedules shrink."""

    def __init__(self, drawn: bytes) -> None:
        self._left = int.from_bytes(drawn, "little")

    def of(self, choices: Sequence[T]) -> T:
        """One of them."""
        self._left, index = divmod(self._left, len(choices))
        return choices[index]

    def somebody(self) -> int:
        """A member, by a number that may be too large."""
        return self.of(range(6))


class Schedule(RuleBasedStateMachine):
    """One schedule. A few kinds of steps are left out of each, so that others come more often than not."""

    def __init__(self, lab: Laboratory, mutant: Mutant, *, damage: bool) -> None:
        super().__init__()
        self.world = World(lab, mutant)
        self.kinds: list[Callable[[Dice], str]] = [
            *(self.everybody, self.turn, self.time_goes_by, self.step, self.append, self.absence),
            *(self.join, self.leave, self.crash, self.disturb, self.arrive, self.jump, self.server, self.pause),
        ]
        if damage:
            self.kinds += [
                *(self.delete, self.trim, self.remember, self.roll_back, self.flush, self.reset, self.ungroup),
            ]

    @initialize(drawn=st.binary(min_size=BYTES, max_size=BYTES))
    def begin(self, drawn: bytes) -> None:
        dice = Dice(drawn)
        members, early, sent = dice.of(range(1, 4)), dice.of(range(1, 4)), dice.of(range(1, 7))
        if dice.of([False, True]):
            left_out = dice.of(range(2**20))
            self.kinds = [kind for n, kind in enumerate(self.kinds) if not left_out >> n & 1] or self.kinds
        note(f"{members} members")
        for partition in range(0, PARTITIONS, early):
            self.world.producers[1].send(partition, sent)
        for _ in range(members):
            self.world.join()
        self.world.everybody(2)
        for partition in range(PARTITIONS):
            self.world.producers[0].send(partition, sent)
        self.world.judge.check()

    @rule(drawn=st.binary(min_size=STEPS * BYTES, max_size=STEPS * BYTES))
    def go_on(self, drawn: bytes) -> None:
        for at in range(0, len(drawn), BYTES):
            dice = Dice(drawn[at : at + BYTES])
            kind = dice.of(self.kinds)
            note(f"{kind.__name__} {kind(dice)}")
            self.world.judge.check()

    def member(self, dice: Dice) -> Member | None:
        n = dice.somebody()
        awake = [member for member in self.world.alive if not member.frozen]
        return awake[n % len(awake)] if awake else None

    # What workers and producers do

    def everybody(self, dice: Dice) -> str:
        rounds = dice.of([1, 2, 3])
        self.world.everybody(rounds)
        return f"works for {rounds} rounds"

    def turn(self, dice: Dice) -> str:
        milliseconds, member = dice.of(TIMES), self.member(dice)
        beat, work = dice.of(REPLIES), dice.of(REPLIES)
        self.world.tick(milliseconds)
        if member:
            member.beat(beat)
            member.work(work)
        return f"of {member} after {milliseconds} ms: beats ({beat.name}) and works ({work.name})"

    def time_goes_by(self, dice: Dice) -> str:
        milliseconds = dice.of(TIMES)
        self.world.tick(milliseconds)
        return f"for {milliseconds} ms"

    def step(self, dice: Dice) -> str:
        member, reply = self.member(dice), dice.of(REPLIES)
        what = dice.of(["beat", "beat", "work", "acquire", "read", "take", "finish", "commit"])
        if member:
            member.step(what, reply)
        return f"of {member}: {what} ({reply.name})"

    def append(self, dice: Dice) -> str:
        producer, partition = dice.of(self.world.producers), dice.of(range(PARTITIONS))
        number, reply, gives_up = dice.of(range(1, 5)), dice.of(REPLIES), dice.of([False] * 5 + [True])
        if gives_up:
            producer.give_up()
        producer.send(partition, number, reply)
        return f"of {number} to {partition} by {producer.name} ({reply.name}){', giving up before' if gives_up else ''}"

    # Coming and going

    def join(self, dice: Dice) -> str:
        if len(self.world.alive) >= 4:
            return "of nobody"
        return f"of {self.world.join()}"

    def leave(self, dice: Dice) -> str:
        member, reply = self.member(dice), dice.of(REPLIES)
        if member:
            if member.leaving and not member.shares:
                member.farewell(reply)
            member.leave()
        return f"of {member} ({reply.name})"

    def crash(self, dice: Dice) -> str:
        member, noticed = self.member(dice), dice.of([False, True])
        if member:
            member.crash(noticed=noticed)
        return f"of {member}, {'' if noticed else 'not '}noticed"

    def disturb(self, dice: Dice) -> str:
        n, what, on = dice.somebody(), dice.of(["freeze", "block", "deafen", "connect"]), dice.of([False, True])
        if not self.world.alive:
            return "nobody"
        member = self.world.alive[n % len(self.world.alive)]
        getattr(member, what)(on)
        return f"{member}: {what} {on}"

    def absence(self, dice: Dice) -> str:
        """Somebody is away in the middle of something, and the others go on. It may act before it hears of that."""
        member, rounds, frozen = self.member(dice), dice.of(range(1, 15)), dice.of([False, True])
        deaf = dice.of([False, True])
        sent, reply = dice.of(["beat", "acquire", "commit", "nothing"]), dice.of(REPLIES)
        then = [dice.of(WORK) for _ in range(dice.of(range(4)))]
        if member:
            if sent == "acquire":
                member.beat()
            member.step(sent, reply)
            (member.freeze if frozen else member.block)(True)
            self.world.everybody(rounds)
            member.deafen(deaf)
            member.freeze(False)
            member.block(False)
            for what in then:
                if what == "arrive":
                    self.world.arrive()
                member.step(what, Reply.HEARD)
            member.deafen(False)
        how = "frozen" if frozen else "blocked"
        return (
            f"of {member}: {sent} ({reply.name}), then {how} for {rounds} rounds, then {'deaf ' if deaf else ''}{then}"
        )

    # The network and the server

    def arrive(self, dice: Dice) -> str:
        n = dice.somebody()
        self.world.arrive(n)
        return f"of what was held up, number {n}"

    def jump(self, dice: Dice) -> str:
        milliseconds, member = dice.of([-HOUR, -500, 500, HOUR]), self.member(dice)
        self.world.jump(milliseconds)
        if member:
            member.beat()
            member.step("work", Reply.HEARD)
        return f"of the server's clock by {milliseconds} ms; {member} beats and works"

    def server(self, dice: Dice) -> str:
        what = dice.of(["restart", "script flush", "look for losses"])
        match what:
            case "restart":
                self.world.restart()
            case "script flush":
                self.world.lab.ask("SCRIPT", "FLUSH")
            case "look for losses":
                self.world.look_for_losses()
        return what

    def pause(self, dice: Dice) -> str:
        paused = dice.of([True, False])
        self.world.pause(paused)
        return "begins" if paused else "ends"

    # What destroys

    def delete(self, dice: Dice) -> str:
        keys, control, partition = self.world.keys, self.world.control, dice.of(range(PARTITIONS))
        key = dice.of(
            [
                *(control.group, control.members, control.targets, control.owners, control.parked),
                *(keys.positions(0, "delays"), keys.log(partition), keys.registered(0), keys.sequence(partition, "p")),
            ]
        )
        self.world.damage.delete(key)
        return key

    def trim(self, dice: Dice) -> str:
        partition, keep = dice.of(range(PARTITIONS)), dice.of(range(4))
        self.world.damage.trim(partition, keep)
        return f"of {partition} to {keep}"

    def remember(self, dice: Dice) -> str:
        self.world.damage.remember()
        return "what there is"

    def roll_back(self, dice: Dice) -> str:
        if self.world.damage.snapshot is None:
            return "to nothing"
        slot = dice.of(["", "", "control", "data"])
        self.world.damage.roll_back(slot)
        return f"of {slot or 'everything'}"

    def ungroup(self, dice: Dice) -> str:
        partition, mark = dice.of(range(PARTITIONS)), dice.of([False, False, True])
        self.world.damage.ungroup(partition, mark=mark)
        return f"of {partition}{', and its mark' if mark else ''}"

    def flush(self, dice: Dice) -> str:
        self.world.damage.flush()
        return "of everything"

    def reset(self, dice: Dice) -> str:
        partition, end = dice.of(range(PARTITIONS)), dice.of([False, True])
        self.world.damage.reset_to(partition, end=end)
        return f"of {partition} to the {'end' if end else 'beginning'}"

    # The end

    def teardown(self) -> None:
        try:
            if not self.world.judge.broken:
                self.world.heal()
        finally:
            self.world.close()


def play(lab: Laboratory, schedules: int, hunt: int, *, damage: bool = False, mutant: Mutant = CORRECT) -> None:
    """Play so many schedules, and shrink the first that breaks a promise.

    Arguments:
        hunt: the seed.
        damage: whether data is destroyed as well.
        mutant: what is wrong on purpose; then nothing is shrunk.

    Raises:
        Violation: one has.
    """

    def machine() -> Schedule:
        return Schedule(lab, mutant, damage=damage)

    seed(hunt)(machine)
    machine._hypothesis_internal_use_seed = hunt  # type: ignore[attr-defined]  # the same for a machine
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=schedules,
            stateful_step_count=LENGTH // STEPS,
            deadline=None,
            database=None,
            phases=[Phase.generate, *([Phase.shrink] if mutant is CORRECT else [])],
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )


def main() -> None:
    """Play as many as the command line says, on a server of their own."""
    parser = argparse.ArgumentParser(prog="simulation.schedules")
    parser.add_argument("--schedules", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--damage", action="store_true", help="data is destroyed as well")
    parser.add_argument("--server", help="the server program")
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedServer(binary=asked.server, unix_socket=Path(directory) / "s") as server,
    ):
        lab = Laboratory(server.url)
        play(lab, asked.schedules, asked.seed, damage=asked.damage)
        lab.disconnect()


if __name__ == "__main__":
    main()
