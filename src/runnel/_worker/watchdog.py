"""Notices partitions that have events and make no progress, whatever the reason, and says so.

It looks at what the work is for, the committed positions in Redis, and from the heartbeat thread; so it depends on none
of the parts whose failure it is to notice: reader, processor, committer, the worker's event loop.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from runnel._core.stalls import Stalls
from runnel._redis.keys import ControlKeys, StreamKeys
from runnel._redis.link import Link
from runnel._redis.scripts import look, note_stalled
from runnel.errors import RunnelError
from runnel.instruments import Instruments, PartitionRecovered, PartitionStalled

__all__ = ["Watchdog"]

MOST_INTERVAL = 15.0
"""Seconds between two looks at most. One costs the server some 20 µs per partition."""


class Watchdog:
    """Watches the partitions of one member."""

    def __init__(
        self,
        processor: str,
        keys: StreamKeys,
        control: ControlKeys,
        patience: float,
        at_work: Callable[[], Mapping[int, tuple[int, str]]],
        instruments: Instruments,
    ) -> None:
        """Arguments:
        processor: whose partitions.
        keys: of its stream.
        control: of its group, where it is noted for operators.
        patience: seconds without progress before that is announced.
        at_work: which partitions should make progress; under which token, and what each is doing now; called on the
            heartbeat thread.
        instruments: where to announce; from the heartbeat thread.
        """
        self._processor = processor
        self._keys = keys
        self._control = control
        self._interval = min(MOST_INTERVAL, patience / 4)
        self._at_work = at_work
        self._instruments = instruments
        self._stalls = Stalls(patience)

    @property
    def stalled(self) -> frozenset[int]:
        """The partitions that make no progress now."""
        return self._stalls.stalled

    async def run(self, link: Link) -> None:
        """Look for ever. While Redis is away, or this thread was held up itself, nobody is blamed."""
        looked = time.monotonic()
        while True:
            await asyncio.sleep(self._interval)
            before, looked = looked, time.monotonic()
            at_work = self._at_work()
            try:
                found = await look(link, self._keys, self._processor, sorted(at_work)) if at_work else {}
            except RunnelError:
                self._stalls.excuse(time.monotonic())
                continue
            if looked - before > 2 * self._interval:
                self._stalls.excuse(looked)
            waiting = {p: state.offset for p, state in found.items() if state.offset is not None and state.following}
            stalled, recovered = self._stalls.look(looked, waiting)
            for partition, seconds in sorted(stalled.items()):
                doing = at_work[partition][1]
                self._instruments.announce(PartitionStalled(self._processor, partition, seconds, doing))
            for partition in sorted(recovered):
                self._instruments.announce(PartitionRecovered(self._processor, partition))
            notes = [(p, *at_work[p], seconds) for p, seconds in stalled.items()] + [(p, 0, "", 0.0) for p in recovered]
            if notes:
                with suppress(RunnelError):  # who cannot tell now will not be asked
                    await note_stalled(link, self._control, notes)
