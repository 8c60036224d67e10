"""Forwards failed events to a stream of their own."""

from collections.abc import AsyncGenerator, Callable
from typing import Any, Generic, TypeVar

from runnel.errors import ConfigurationError, RecordError
from runnel.events import Event, Events
from runnel.instruments import DeadLettered
from runnel.interfaces import Middleware
from runnel.records import Record
from runnel.streams import Stream

__all__ = ["DEAD_LETTER_HEADERS", "DeadLetterMiddleware", "forward", "routed", "sink_of"]

R = TypeVar("R", bound=Record)

DEAD_LETTER_HEADERS = ("error", "processor", "source")
"""What a dead letter has besides the headers of its original."""


class DeadLetterMiddleware(Middleware, Generic[R]):
    """Sends every event, or every event of a batch, during which the processor failed to the stream ``sink``.

    A dead letter has the fields and the headers of the original, and besides them ``error``, ``processor`` and
    ``source`` (stream, partition and id). It is sent before the failed event is acknowledged, and once per source event
    and week, also when the worker crashes in between. While Redis is away or ``sink`` is full, its partition waits;
    if it cannot be sent for another reason, the worker halts, also with ``IGNORE``.

    If no processor is registered for ``sink``, its oldest entries are removed when there are more than its
    ``partition_size`` in a partition, as in any stream. To keep all, declare it with ``partition_size=0``.

    Example:
        ::

            dead_letter = DeadLetterMiddleware(source=actions)

            @app.processor(actions, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
            async def proc(events): ...

            @app.processor(dead_letter.sink)
            async def dead(events): ...

    Arguments:
        source: the stream whose failed events are forwarded.
        sink: where to. Default: a stream named like the source with ``.dead`` behind it, with its properties.
    """

    def __init__(self, source: Stream[R], sink: Stream[R] | None = None) -> None:
        """Arguments: see the class.

        Raises:
            ConfigurationError: one of them is no stream.
        """
        for stream in (source,) if sink is None else (source, sink):
            if not isinstance(stream, Stream):
                raise ConfigurationError(f"DeadLetterMiddleware needs a stream, made by app.stream; got {stream!r}.")
        self.source = source
        self.sink = sink if sink is not None else sink_of(source)

    async def handler(self, parent: AsyncGenerator[Any, None], **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Pass everything on; forward what the code above failed with.

        As :meth:`runnel.interfaces.Middleware.handler`.
        """
        events: Events[R] = kwargs["events"]
        async for x in parent:
            try:
                yield x
            except GeneratorExit:
                if events.failure is not None and not events.retrying:
                    for event in x if isinstance(x, list) else [x]:
                        error = f"{type(events.failure).__name__}: {events.failure}"
                        await forward(self.sink, event, events.processor, error)
                        self.sink.outlet.announce(
                            DeadLettered(events.processor, event.stream, event.partition, event.id, self.sink.name)
                        )
                raise


def sink_of(source: Stream[R]) -> Stream[R]:
    """Where the dead letters of a stream go, unless it was said otherwise."""
    return source.sibling(f"{source.name}.dead")


async def forward(sink: Stream[R], event: Event[R], processor: str, error: str) -> None:
    """Send an event that failed to the dead letters, once per source event and week. Waits until it is sent.

    Arguments:
        sink: where to.
        event: as it was read from its stream.
        processor: which failed.
        error: type and message.
    """
    source = f"{event.stream}/{event.partition}/{event.id}"
    await sink.send_once(
        routed(sink, event, event.partition),
        [part for item in event.data.items() for part in item],
        {**event.headers, "error": error, "processor": processor, "source": source},
        origin=f"{processor}/{source}",
    )


def routed(to: Stream[R], event: Event[R], partition: int) -> Callable[[int], int]:
    """Where a stream would put the record of an event, given the number of its partitions.

    If it cannot be decoded: ``partition``, where it came from.
    """

    def route(partition_count: int) -> int:
        try:
            return to.partition_of(event.record, partition_count)
        except RecordError:
            return partition % partition_count

    return route
