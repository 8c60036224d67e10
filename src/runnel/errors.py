"""Every error that Runnel raises.

::

    RunnelError
    ├─ ConfigurationError          the program does not fit together                 exit status 4
    │  ├─ UnknownSetting              a keyword that is no setting
    │  ├─ StreamMoved                 the stream is on another server now
    │  ├─ MetadataMismatch            the stream is stored with other properties
    │  └─ UnknownProcessor            no processor of that name in the app
    ├─ TargetError                 `module:attribute` does not lead anywhere          exit status 2
    ├─ NoSuchPlace                 no id, time, duration or partition of a stream    exit status 2
    ├─ RecordError                 a value that does not fit                         exit status 2
    │  ├─ PartitionKeyError           the partition key is missing or of an unusable type
    │  └─ DecodeError                 an entry in the log that is not one of our records
    ├─ StreamFull                  a partition is full of unprocessed entries
    ├─ StreamSealed                a stream takes nothing any more, and it is not known where to go
    ├─ MoveFailed                  a stream cannot be moved to another server
    ├─ UnusedStream                nothing is stored of a stream
    ├─ MigrationConflict           somebody else has divided a stream anew
    ├─ NoSuchLetter                there is no dead letter of that name
    ├─ NotQuarantined              there is no quarantine to end
    ├─ ProcessorInUse              a processor has workers, so that it cannot be deleted
    ├─ ProcessorReturned           a processor's function ended without asking for an event
    ├─ ServerError                 a private server did not start, or is not running
    │  └─ AddressInUse                somebody else listens where it should
    ├─ BenchError                  a measurement failed
    ├─ ProjectError                a project cannot be created there                 exit status 2
    ├─ RedisError                  the server refused a command
    │  └─ NotAllowed                  it does not allow the user that                exit status 4
    └─ RedisUnavailable            no answer from the server; may pass               exit status 3
       ├─ NotDurable                  stored, but not where the stream's durability asks for it
       └─ StreamMoving                the stream is being moved to another server
"""

import difflib
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "AddressInUse",
    "BenchError",
    "ConfigurationError",
    "DecodeError",
    "MetadataMismatch",
    "MigrationConflict",
    "MoveFailed",
    "NoSuchLetter",
    "NoSuchPlace",
    "NotAllowed",
    "NotDurable",
    "NotQuarantined",
    "PartitionKeyError",
    "ProcessorInUse",
    "ProcessorReturned",
    "ProjectError",
    "RecordError",
    "RedisError",
    "RedisUnavailable",
    "RunnelError",
    "ServerError",
    "StreamFull",
    "StreamMoved",
    "StreamMoving",
    "StreamSealed",
    "TargetError",
    "UnknownProcessor",
    "UnknownSetting",
    "UnusedStream",
    "did_you_mean",
]


class RunnelError(Exception):
    """The base of all. ``exit_status`` is what a command ends with when this error ends it."""

    exit_status: ClassVar[int] = 1


class ConfigurationError(RunnelError):
    """The program, its settings or the stored state do not fit together."""

    exit_status = 4


class UnknownSetting(ConfigurationError):
    """A keyword or variable that is no setting."""


class MetadataMismatch(ConfigurationError):
    """The stream exists in Redis with another partition count, hasher or format."""


class StreamMoved(ConfigurationError):
    """The stream was moved to another server: this one takes and processes nothing of it any more."""


class UnknownProcessor(ConfigurationError):
    """The app has no processor of that name."""


class TargetError(RunnelError):
    """A command-line target does not lead to the object that the command needs."""

    exit_status = 2


class NoSuchPlace(RunnelError, ValueError):
    """Words that should name a place in a stream do not: no id, time, duration, or number of a partition."""

    exit_status = 2


class RecordError(RunnelError, ValueError):
    """A value that does not fit its stream."""

    exit_status = 2


class PartitionKeyError(RecordError):
    """A record's partition key is missing, or of a type that has no canonical bytes."""


class DecodeError(RecordError):
    """An entry of the log cannot be turned into a record."""


class StreamFull(RunnelError):
    """A partition is full of entries that a registered processor has not processed yet."""


class StreamSealed(RunnelError):
    """A stream takes nothing any more, and Redis does not say what has taken its place."""


class UnusedStream(RunnelError):
    """Nothing was ever sent to a stream, and no worker has run, so that nothing is stored of it."""


class MoveFailed(RunnelError):
    """A stream cannot be moved to that server, or is not the same there."""


class MigrationConflict(RunnelError):
    """Somebody else has divided a stream anew, in another way."""


class NoSuchLetter(RunnelError):
    """There is no dead letter of that name; or it is gone already."""


class NotQuarantined(RunnelError):
    """The partition is not quarantined, or there is no event to skip."""


class ProcessorInUse(RunnelError):
    """Workers run the processor, so that it cannot be deleted."""


class ProcessorReturned(RunnelError):
    """A processor's function ended without asking for an event, so that it can make no progress."""


class ServerError(RunnelError):
    """A private server did not start, or is not running."""


class AddressInUse(ServerError):
    """Somebody else listens where a private server should."""


class BenchError(RunnelError):
    """A measurement of ``runnel bench`` failed."""


class ProjectError(RunnelError):
    """A project cannot be created in that directory, or under that name."""

    exit_status = 2


class RedisError(RunnelError):
    """The server answered with an error that waiting does not mend."""


class NotAllowed(RedisError):
    """The server does not allow the user of the URL to do that, or does not have the database of the URL."""

    exit_status = 4


class RedisUnavailable(RunnelError):
    """The server cannot be reached, or cannot serve at the moment. Waiting may help.

    Attributes:
        what: the message without the cure, for who waits anyway.
    """

    exit_status = 3

    def __init__(self, what: str, cure: str = "") -> None:
        super().__init__(f"{what} {cure}" if cure else what)
        self.what = what


class NotDurable(RedisUnavailable):
    """What was sent is stored, but not confirmed by a replica, or not on disk, as the stream's durability asks for."""


class StreamMoving(RedisUnavailable):
    """The stream is being moved to another server. Whoever sends waits for that."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint like ``' Did you mean "log_level"?'``, or an empty string where nothing in ``known`` is near ``name``."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f' Did you mean "{near[0]}"?' if near else ""
