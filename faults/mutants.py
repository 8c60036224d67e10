"""Ways to be wrong, each of which the plays must show and the checker must find.

A mutant lives in the worker and producer processes of a play alone, and is made here: of the text of a script, or of a
method. Nothing in the product knows of it.
"""

import hashlib
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from runnel._core.lease import DEADLINE_SHARE, Lease
from runnel._redis import durability, scripts
from runnel._redis.link import Link
from runnel._worker import reader
from runnel.errors import RedisError
from runnel.events import Event, Events

__all__ = ["MUTANTS", "Mutant", "become"]


@dataclass(frozen=True)
class Mutant:
    """A way to be wrong.

    Attributes:
        text: what is wrong.
        play: the fault that must show it.
        checks: one of these must find it.
        change: makes this process wrong.
    """

    text: str
    play: str
    checks: tuple[str, ...]
    change: Callable[[], None]


def become(name: str | None) -> None:
    """Make this process wrong, if it is to be."""
    if name:
        MUTANTS[name].change()


def _script(script: Any, before: str, after: str) -> None:
    """Replace a piece of a script."""
    source = script._source.decode()
    assert source.count(before) == 1, f"{before!r} is not in the script once; the mutant must follow the product"
    script._source = source.replace(before, after).encode()
    script._digest = hashlib.sha1(script._source, usedforsecurity=False).hexdigest()


def _any_token() -> None:
    _script(scripts._commit, "if its_token ~= token then", "if false then")


def _any_previous() -> None:
    _script(scripts._commit, "elseif its_offset ~= previous then", "elseif false then")


def _revive() -> None:
    """Whoever looks at a lease that was ever granted sees it valid."""

    def get(lease: Lease) -> float:
        granted: float = stored.__get__(lease)
        return time.monotonic() + DEADLINE_SHARE * lease._session if granted else 0.0

    stored: Any = Lease.__dict__["deadline"]
    Lease.deadline = property(get, stored.__set__)  # type: ignore[assignment]
    Lease.end = lambda lease: None  # type: ignore[method-assign]


def _no_sequence() -> None:
    """What is repeated after a lost reply is appended again."""
    _script(scripts._append, "if sequence == last_sequence then", "if false then")


def _read_by_group() -> None:
    """XREADGROUP >, in a group of its own that the commits do not touch."""
    made: set[str] = set()

    async def read(
        link: Link, names: Sequence[str], cursors: Sequence[bytes], *, count: int, block: int | None, timeout: float
    ) -> list[Any]:
        for name in set(names) - made:
            with suppress(RedisError):  # somebody was faster
                await link.call("XGROUP", "CREATE", name, "mutant", "0-0", "MKSTREAM")
            made.add(name)
        waiting = () if block is None else ("BLOCK", block)
        answer = await link.call(
            *("XREADGROUP", "GROUP", "mutant", "one", "COUNT", count, *waiting, "STREAMS", *names),
            *(">" for _ in names),
            timeout=timeout,
        )
        return answer or []

    reader.read = read


def _commit_first() -> None:
    """An event is acknowledged when it is handed out."""
    original = Events._events

    async def events(self: Events[Any], loop: Any) -> AsyncGenerator[Event[Any], None]:
        async for event in original(self, loop):
            await self._settle(loop)
            yield event

    Events._events = events  # type: ignore[method-assign]


def _no_confirmation() -> None:
    durability.REPLICA = durability.PRIMARY


MUTANTS = {
    "any-token": Mutant("no token check in commit", "F10-late", ("C4",), _any_token),
    "any-previous": Mutant("no compare with the previous position in commit", "F10-late", ("C2", "C3"), _any_previous),
    "revived-lease": Mutant("leases that revive after expiry", "F2", ("C5",), _revive),
    "no-sequence": Mutant("retries of an append without sequence", "F10", ("C8",), _no_sequence),
    "group-read": Mutant("a reader that uses XREADGROUP >", "F1", ("C1", "C3"), _read_by_group),
    "commit-first": Mutant("commit before the handler", "F1", ("C2", "C1", "C3"), _commit_first),
    "no-confirmation": Mutant("sending and commits that do not wait for the replica", "F7", ("C1",), _no_confirmation),
}
