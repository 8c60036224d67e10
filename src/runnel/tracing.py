"""Traces and metrics by OpenTelemetry's conventions for messaging: what was sent, and what was processed.

Owns the spans around ``send`` and around each iteration of a processor's loop, the metrics of the conventions, and how
a trace travels in the headers of an entry. Uses OpenTelemetry's interface alone, with the providers and propagators
that the program, or ``runnel worker``, has configured. Nobody imports this unless the setting ``otel`` is on.

Conventions: https://opentelemetry.io/docs/specs/semconv/messaging/ (v1.44).
"""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import Any
from urllib.parse import unquote, urlsplit

from opentelemetry import metrics, propagate, trace
from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from runnel.codecs import flat_headers
from runnel.events import Event, Events
from runnel.interfaces import Middleware

__all__ = ["Tracing"]

DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
"""Bounds of the histograms, in seconds, as the conventions have them."""

Items = Sequence[tuple[int, Sequence[bytes]]]
"""Partition and fields of each entry."""

Facts = dict[str, str | int]


class Tracing(Middleware):
    """The spans and metrics of one app.

    A producer's span covers one ``send``, and its context goes with each of the entries. A consumer's span covers one
    iteration of a processor's loop, and is current in it. That of a single event is a child of the producer's span;
    that of a batch has links to all of them.
    """

    def __init__(self, redis_url: str) -> None:
        """Arguments:
        redis_url: names the server in spans and metrics, without user and password.
        """
        version = metadata.version("runnel")
        self._common: Facts = {"messaging.system": "runnel", **_server(redis_url)}
        self._tracer = trace.get_tracer("runnel", version)
        meter = metrics.get_meter("runnel", version)
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            "{message}",
            "Number of messages producer attempted to send to the broker.",
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages",
            "{message}",
            "Number of messages that were delivered to the application.",
        )
        self._operations = meter.create_histogram(
            "messaging.client.operation.duration",
            "s",
            "Duration of messaging operation initiated by a producer or consumer client.",
            explicit_bucket_boundaries_advisory=DURATIONS,
        )
        self._processing = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "Duration of processing operation.",
            explicit_bucket_boundaries_advisory=DURATIONS,
        )

    # Sending

    async def send(
        self, stream: str, items: Items, append: Callable[[Items], Awaitable[Sequence[str]]]
    ) -> Sequence[str]:
        """Append entries that carry the context of the span around it.

        Arguments:
            stream: name of the stream.
            items: what to append.
            append: appends it, and returns the ids.
        """
        with self.sending(stream, [partition for partition, _ in items]) as span:
            carrier: dict[str, str] = {}
            propagate.inject(carrier)
            headers = flat_headers(carrier)
            ids = await append([(partition, (*entry, *headers)) for partition, entry in items] if headers else items)
            if len(ids) == 1:
                span.set_attribute("messaging.message.id", ids[0])
            return ids

    @contextmanager
    def sending(self, stream: str, partitions: Sequence[int]) -> Iterator[Span]:
        """A producer's span, current while entries are appended.

        Arguments:
            stream: name of the stream.
            partitions: that of each entry.
        """
        facts: Facts = {**self._common, **_operation("send"), "messaging.destination.name": stream}
        details: Facts = {}
        if len(partitions) > 1:
            details["messaging.batch.message_count"] = len(partitions)
        if len(set(partitions)) == 1:
            details["messaging.destination.partition.id"] = str(partitions[0])
        began = time.perf_counter()
        attributes = {**facts, **details}
        with self._tracer.start_as_current_span(
            f"send {stream}", kind=SpanKind.PRODUCER, attributes=attributes
        ) as span:
            try:
                yield span
            except BaseException as error:
                facts["error.type"] = _name(error)
                span.set_attribute("error.type", _name(error))
                raise
            finally:
                self._sent.add(len(partitions), facts)
                self._operations.record(time.perf_counter() - began, facts)

    # Processing

    async def handler(self, parent: AsyncGenerator[Any, None], **kwargs: Any) -> AsyncGenerator[Any, None]:
        """Pass everything on, each within a span of its own.

        This runs in the task of the processor's function, so what is attached here is current in the body of its
        loop. It is not taken off with the token of ``attach``, which is refused in any other task, if somebody asks
        for the next event from there: what was current before is attached again.
        """
        events: Events[Any] = kwargs["events"]
        facts: Facts = {
            **self._common,
            **_operation("process"),
            "messaging.destination.name": events.stream,
            "messaging.consumer.group.name": events.processor,
        }
        async for x in parent:
            before = get_current()
            span, within = self._begin(events, x, facts, before)
            began = time.perf_counter()
            attach(within)
            try:
                yield x
            finally:
                attach(before)
                outcome = _end(span, events)
                self._consumed.add(len(x) if isinstance(x, list) else 1, facts | outcome)
                self._processing.record(time.perf_counter() - began, facts | outcome)

    def _begin(
        self, events: Events[Any], x: Event[Any] | list[Event[Any]], facts: Facts, before: Context
    ) -> tuple[Span, Context]:
        """The span of one iteration, and the context with it."""
        details: Facts = {"messaging.destination.partition.id": str(events.partition)}
        if events.attempt > 1:
            details["messaging.runnel.attempt"] = events.attempt
        if isinstance(x, list):
            details["messaging.batch.message_count"] = len(x)
            around = before
            links = [link for event in x for link in _links(propagate.extract(_carrier(event), Context()), event)]
        else:
            details["messaging.message.id"] = x.id
            around = propagate.extract(_carrier(x), before)
            links = _links(around, x)
            ambient = trace.get_current_span(before).get_span_context()
            if links and ambient.is_valid:  # the user's own span around the whole loop
                links.append(Link(ambient))
        span = self._tracer.start_span(
            f"process {events.stream}",
            context=around,
            kind=SpanKind.CONSUMER,
            attributes={**facts, **details},
            links=links,
        )
        return span, trace.set_span_in_context(span, around)


def _end(span: Span, events: Events[Any]) -> Facts:
    """End the span of an iteration. Returns what its metrics say of its outcome."""
    failure = events.failure
    outcome: Facts = {}
    if failure is not None:
        outcome["error.type"] = _name(failure)
        span.record_exception(failure)
        span.set_status(StatusCode.ERROR, str(failure))
    elif events.abandoned:
        outcome["error.type"] = "abandoned"
        span.set_status(StatusCode.ERROR, "Cancelled, because the partition was lost or had to be handed over.")
    span.set_attributes(outcome)
    span.end()
    return outcome


def _links(context: Context, event: Event[Any]) -> list[Link]:
    """To the span that sent an event, if that is known."""
    creation = trace.get_current_span(context).get_span_context()
    if not (creation.is_valid and creation.is_remote):
        return []
    return [Link(creation, {"messaging.message.id": event.id})]


def _carrier(event: Event[Any]) -> Mapping[str, str]:
    return {name: value.decode(errors="replace") for name, value in event.headers.items()}


def _operation(name: str) -> Facts:
    return {"messaging.operation.name": name, "messaging.operation.type": name}


def _server(redis_url: str) -> Facts:
    parts = urlsplit(redis_url)
    if parts.scheme == "unix":
        return {"server.address": unquote(parts.path)}
    return {"server.address": parts.hostname or "localhost", "server.port": parts.port or 6379}


def _name(error: BaseException) -> str:
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
