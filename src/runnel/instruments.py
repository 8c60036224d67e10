"""What happens is announced once; logs, metrics and tests subscribe.

Owns the event types and the bus. Does not format anything: ``runnel.observability`` does. Nothing is announced per
event of a stream. Subscribers are called at once, on the thread that announces (the heartbeat thread included),
and must return quickly.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = [
    "Announcement",
    "AttemptFailed",
    "DeadLettered",
    "GenerationBegun",
    "Instruments",
    "LogReplaced",
    "LossDetected",
    "MemberEvicted",
    "MemberJoined",
    "PartitionFailed",
    "PartitionGained",
    "PartitionLost",
    "PartitionRecovered",
    "PartitionReleased",
    "PartitionRewound",
    "PartitionStalled",
    "PartitionsPaused",
    "PartitionsResumed",
    "RedisGivenUp",
    "RedisLost",
    "RedisRecovered",
    "SequenceGap",
    "StreamDividedAnew",
    "StreamLeft",
    "TaskFailed",
    "WorkerStarted",
    "WorkerStopped",
    "WorkerStopping",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Announcement:
    """The base of all announcements."""


@dataclass(frozen=True, slots=True)
class WorkerStarted(Announcement):
    """A worker runs: its processors are about to join their groups."""

    worker: str
    processors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerStopping(Announcement):
    """A worker begins to drain. ``reason`` is a phrase such as ``SIGTERM`` or ``a processor halted``."""

    worker: str
    reason: str
    in_flight: int


@dataclass(frozen=True, slots=True)
class WorkerStopped(Announcement):
    """A worker has left all its groups."""

    worker: str
    processed: int
    released: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MemberJoined(Announcement):
    """A worker has a seat in the group of a processor."""

    processor: str
    member: str


@dataclass(frozen=True, slots=True)
class MemberEvicted(Announcement):
    """The coordinator does not know this member any more: it was silent for too long, or Redis lost its state."""

    processor: str
    member: str


@dataclass(frozen=True, slots=True)
class PartitionGained(Announcement):
    """A partition is ours, fenced, and processing continues behind ``position``."""

    processor: str
    partition: int
    token: int
    position: str
    quarantined: bool


@dataclass(frozen=True, slots=True)
class PartitionReleased(Announcement):
    """A partition was drained, committed and handed back. ``seconds`` from the revocation to the release."""

    processor: str
    partition: int
    token: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PartitionLost(Announcement):
    """A partition was taken from us: processing stopped without a commit. ``reason`` is a phrase."""

    processor: str
    partition: int
    token: int
    reason: str


@dataclass(frozen=True, slots=True)
class PartitionRewound(Announcement):
    """The stored position is not what we committed last: processing goes on from what is stored.

    ``reason`` is ``"reset"`` (somebody moved the position) or ``"rollback"`` (Redis lost what it had confirmed).
    (A log that was replaced is a :class:`LogReplaced`.)
    """

    processor: str
    partition: int
    reason: str
    expected: str
    stored: str


@dataclass(frozen=True, slots=True)
class LossDetected(Announcement):
    """Entries were removed from the log before this processor had processed them."""

    processor: str
    partition: int
    entries: int


@dataclass(frozen=True, slots=True)
class LogReplaced(Announcement):
    """Somebody has deleted the log of a partition, and another one has begun: what was left in the old one is lost.

    Or they have deleted the position with its copy in the consumer group, so that nothing says what was processed, or
    removed before it was. Processing goes on with all that is there now, behind ``position``.
    """

    processor: str
    partition: int
    position: str


@dataclass(frozen=True, slots=True)
class AttemptFailed(Announcement):
    """The user's function raised; the same events are tried again after ``seconds``. ``attempt`` begins with 1."""

    processor: str
    partition: int
    event_ids: tuple[str, ...]
    attempt: int
    retries: int
    seconds: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class PartitionFailed(Announcement):
    """The user's function raised, or an event could not be decoded, and is not tried again.

    ``policy`` says what is done about it, ``attempt`` how often it was tried.
    """

    processor: str
    partition: int
    event_ids: tuple[str, ...]
    policy: str
    error: BaseException
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class DeadLettered(Announcement):
    """A failed event is in the stream for dead letters. ``source`` is the stream it comes from."""

    processor: str
    source: str
    partition: int
    event_id: str
    sink: str


@dataclass(frozen=True, slots=True)
class PartitionsPaused(Announcement):
    """Somebody has paused the processor: events in progress are finished, nothing more is handed out, nothing begun."""

    processor: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartitionsResumed(Announcement):
    """What was paused or quarantined goes on in this worker."""

    processor: str
    partitions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PartitionStalled(Announcement):
    """A partition of ours has events, and its position has not moved for ``seconds``. ``doing`` says what it does."""

    processor: str
    partition: int
    seconds: float
    doing: str


@dataclass(frozen=True, slots=True)
class PartitionRecovered(Announcement):
    """A partition that had stalled makes progress again, has nothing to do, or is not ours any more."""

    processor: str
    partition: int


@dataclass(frozen=True, slots=True)
class TaskFailed(Announcement):
    """A background task, timer or crontab raised. A timer or crontab runs again at its next tick.

    Or a part of the worker itself did, which is a bug in Runnel: the worker ends.
    """

    task: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class RedisLost(Announcement):
    """An operation could not reach Redis and is tried again until it can. ``role`` names the operation."""

    role: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class RedisRecovered(Announcement):
    """The operation named in a :class:`RedisLost` works again, after ``seconds``."""

    role: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RedisGivenUp(Announcement):
    """The operation named in a :class:`RedisLost` is not tried any more: it took too long, or is not needed now."""

    role: str


@dataclass(frozen=True, slots=True)
class SequenceGap(Announcement):
    """Redis has lost appends that it had confirmed to this producer. What was being sent is sent anew."""

    stream: str
    partition: int
    stored: int
    sent: int


@dataclass(frozen=True, slots=True)
class GenerationBegun(Announcement):
    """A worker has nothing left to do in one generation of a stream, and goes on with the next one."""

    processor: str
    stream: str
    generation: int
    partitions: int


@dataclass(frozen=True, slots=True)
class StreamDividedAnew(Announcement):
    """The code says how many partitions a stream had in an earlier generation. What is stored counts."""

    stream: str
    said: int
    partitions: int
    generation: int


@dataclass(frozen=True, slots=True)
class StreamLeft(Announcement):
    """A stream is moved to the server at ``address``: this worker does not process it any more."""

    processor: str
    stream: str
    address: str


@dataclass(slots=True)
class Instruments:
    """The bus. One per app."""

    _subscribers: list[Callable[[Announcement], None]] = field(default_factory=list)

    def subscribe(self, subscriber: Callable[[Announcement], None]) -> Callable[[], None]:
        """Call ``subscriber`` with every announcement from now on. Returns what ends the subscription."""
        self._subscribers.append(subscriber)

        def unsubscribe() -> None:
            self._subscribers.remove(subscriber)

        return unsubscribe

    def announce(self, announcement: Announcement) -> None:
        """Tell every subscriber."""
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(announcement)
            except Exception:  # who only looks on must not stop the work
                _log.exception("A subscriber failed for %r", announcement)
