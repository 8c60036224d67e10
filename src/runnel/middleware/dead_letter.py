"""Forwards failed events to a stream of their own."""

from collections.abc import AsyncGenerator
from typing import Any, Generic, TypeVar

from runnel.errors import RecordError
from runnel.events import Event, Events
from runnel.instruments import DeadLettered
from runnel.interfaces import Middleware
from runnel.records import Record
from runnel.streams import Stream

__all__ = ["DeadLetterMiddleware"]

R = TypeVar("R", bound=Record)


class DeadLetterMiddleware(Middleware, Generic[R]):
    """Sends every event, or every event of a batch, during which the processor failed to the stream ``sink``.

    A dead letter has the fields of the original, and the headers ``error``, ``processor`` and ``source`` (stream,
    partition and id). It is sent before the failed event is acknowledged, and once per source event and week, also when
    the worker crashes in between. While it cannot be sent, its partition waits.

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
        self.source = source
        self.sink = sink if sink is not None else source.sibling(f"{source.name}.dead")

    async def handler(self, parent: AsyncGenerator[Any, None], **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Pass everything on; forward what the code above failed with."""
        events: Events[R] = kwargs["events"]
        async for x in parent:
            try:
                yield x
            except GeneratorExit:
                if events.failure is not None and not events.retrying:
                    for event in x if isinstance(x, list) else [x]:
                        await self._forward(event, events)
                raise

    async def _forward(self, event: Event[R], events: Events[R]) -> None:
        await self.sink.send_once(
            self._partition(event),
            [part for item in event.data.items() for part in item],
            {
                "error": f"{type(events.failure).__name__}: {events.failure}",
                "processor": events.processor,
                "source": f"{event.stream}/{event.partition}/{event.id}",
            },
            origin=f"{events.processor}/{event.stream}/{event.partition}/{event.id}",
        )
        self.sink.outlet.announce(
            DeadLettered(events.processor, event.stream, event.partition, event.id, self.sink.name)
        )

    def _partition(self, event: Event[R]) -> int:
        """Where the sink would put the record, or, if it cannot be decoded, the partition it came from."""
        try:
            return self.sink.partition_of(event.record)
        except RecordError:
            return event.partition % self.sink.partition_count
