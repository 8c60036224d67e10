"""What destroys: keys that are deleted, logs that are trimmed, a server that loses what was written last.

And a person who moves a position by hand, which is no damage but sets the chain of positions back in the same way.
"""

from typing import TYPE_CHECKING

from runnel._redis import queries, scripts
from runnel._redis.keys import StreamKeys
from simulation.laboratory import now
from simulation.owners import PROCESSOR

if TYPE_CHECKING:
    from simulation.world import World


class Damage:
    """Everything that can be destroyed in a world.

    Attributes:
        snapshot: what a replica or a file holds; ``None`` if nothing was remembered yet.
        known_logs: what the judge knew then of logs that were deleted, and of groups that were destroyed.
    """

    def __init__(self, world: "World") -> None:
        self.world = world
        self.snapshot: dict[bytes, bytes] | None = None
        self.known_logs: tuple[set[int], set[int]] = (set(), set())
        self._slots = {
            "control": world.control.prefix,
            "data": world.keys.positions_prefix(0).removesuffix(":pos:"),
            "": "runnel:",
        }

    def delete(self, key: str) -> None:
        self.world.judge.hurt(key)
        self.world.lab.ask("DEL", key)
        self.world.judge.look_again()

    def trim(self, partition: int, keep: int) -> None:
        """Somebody trims a log by hand, whatever was processed of it."""
        self.world.judge.hurt("log")
        self.world.lab.ask("XTRIM", self.world.log(partition), "MAXLEN", keep)
        self.world.judge.look_again()

    def ungroup(self, partition: int, *, mark: bool = False) -> None:
        """Somebody destroys the consumer group that mirrors the position, which is no damage: it comes back.

        With the ``mark`` it is: the log is taken for another one.
        """
        log = self.world.log(partition)
        if mark:
            self.world.judge.ungrouped(partition)
        if self.world.lab.ask("EXISTS", log):
            for group in (PROCESSOR, StreamKeys.mark_name(PROCESSOR)) if mark else (PROCESSOR,):
                self.world.lab.ask("XGROUP", "DESTROY", log, group)

    def flush(self) -> None:
        self.world.judge.hurt("")
        self.world.lab.empty()
        self.world.judge.look_again()

    def remember(self) -> None:
        """From now on a roll-back leads here."""
        keys = self._keys("")
        dumps = self.world.lab.ask_all([("DUMP", key) for key in keys]) if keys else []
        self.snapshot = dict(zip(keys, dumps, strict=True))
        self.known_logs = set(self.world.judge.begun_anew), set(self.world.judge.unmarked)

    def roll_back(self, slot: str = "") -> None:
        """The server loses what was written since; in one slot (control, data), or in all."""
        assert self.snapshot is not None
        self.world.judge.hurt(slot)
        prefix = self._slots[slot].encode()
        gone = [("DEL", *keys)] if (keys := self._keys(slot)) else []
        back = [("RESTORE", key, 0, value) for key, value in self.snapshot.items() if key.startswith(prefix)]
        if commands := gone + back:
            self.world.lab.ask_all(commands)
        if slot != "control":
            self.world.judge.begun_anew, self.world.judge.unmarked = map(set, self.known_logs)
        if slot != "data":  # by a restart, or because a replica has taken over
            self.world.replication += 1
            self.world.tick(0)
        self.world.judge.look_again()

    def _keys(self, slot: str) -> list[bytes]:
        prefix = self._slots[slot].encode()
        return [key for key in self.world.lab.ask("KEYS", "runnel:*") if key.startswith(prefix)]

    def reset_to(self, partition: int, *, end: bool) -> None:
        """Somebody moves the position to the beginning or the end of what is there, and the members are told."""
        world = self.world
        state = now(queries.log_state(world.lab, world.keys, partition))
        if state is None:
            return
        offset, count = (state.last, state.added) if end else (b"0-0", state.added - state.length)
        now(scripts.reset(world.lab, world.keys, PROCESSOR, partition, offset, count))
        world.judge.reset(partition, offset)
        for member in world.alive:
            for share in member.shares.values():
                share.probe |= member.connected and not share.to_acquire
