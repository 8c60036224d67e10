"""What becomes of a command on its way to the server, and of its answer."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulation.world import World


class Reply(Enum):
    """What becomes of a command."""

    HEARD = "carried out and answered"
    LOST = "carried out; the answer is lost, so it is repeated"
    LATE = "held up in the network: it is repeated, and this one arrives some time later"
    HELD = "carried out; the answer arrives with the next attempt"


@dataclass
class Call:
    """A command, repeated until its answer is known.

    Attributes:
        what: the kind of command, for the judge.
        compose: makes an attempt: a detail for the judge, and what to await.
        answered: called once, with the answer.
        held: the answer that is on its way.
    """

    what: str
    compose: Callable[[], tuple[Any, Coroutine[Any, Any, Any]]]
    answered: Callable[[Any], None]
    held: list[Any] = field(default_factory=list)


class Caller:
    """Who sends commands: one at a time per purpose."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.calls: dict[str, Call] = {}

    def carry_on(self, purpose: str, reply: Reply) -> None:
        """One attempt at the call that is open for this purpose."""
        call = self.calls[purpose]
        if call.held:
            del self.calls[purpose]
            call.answered(call.held.pop())
            return
        detail, work = call.compose()
        if reply is Reply.LATE:
            self.world.wire.append((call.what, self.name, detail, work))
            return
        answer = self.world.carry_out(call.what, self.name, detail, work)
        if reply is Reply.HEARD:
            del self.calls[purpose]
            call.answered(answer)
        elif reply is Reply.HELD:
            call.held.append(answer)
