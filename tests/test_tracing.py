"""Traces and metrics by OpenTelemetry, from the span around ``send`` to that in the body of a processor's loop."""

import asyncio
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, metrics, trace
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from harness import Inspector, eventually, inspecting, running
from program import Project, environment
from runnel import App, Event, ExceptionPolicy, Record
from runnel.admin import plan_replay, replay_dead_letters
from runnel.errors import ConfigurationError, StreamFull
from runnel.interfaces import Middleware
from runnel.middleware import DeadLetterMiddleware
from runnel.streams import Stream

pytestmark = pytest.mark.anyio


class Order(Record):
    order_id: int
    note: str = ""


class Boom(Exception):
    """What the user's code raises."""


@pytest.fixture(scope="module")
def memory() -> tuple[InMemorySpanExporter, InMemoryMetricReader]:
    """The providers of this process, which can be set only once."""
    exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    provider = trace.get_tracer_provider()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    metrics.set_meter_provider(MeterProvider([reader]))
    return exporter, reader


class Seen:
    """The spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    async def one(self, name: str) -> ReadableSpan:
        (span,) = await self.several(name, 1)
        return span

    async def several(self, name: str, number: int) -> list[ReadableSpan]:
        """Wait until so many have ended."""
        await eventually(lambda: len(self.named(name)) >= number)
        assert len(self.named(name)) == number
        return self.named(name)


@pytest.fixture
def spans(memory: tuple[InMemorySpanExporter, InMemoryMetricReader]) -> Seen:
    memory[0].clear()
    return Seen(memory[0])


@pytest.fixture
def app(app_name: str, redis_url: str, spans: Seen) -> App:
    return App(name=app_name, redis_url=redis_url, partition_count=1, otel=True)


@pytest.fixture
def orders(app: App) -> Stream[Order]:
    return app.stream("orders", record=Order, partition_by="order_id")


@pytest.fixture
async def inspector(app: App) -> AsyncIterator[Inspector]:
    async with inspecting(app) as found, app:
        yield found


tracer = trace.get_tracer("tests")


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.trace_id


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return span.context.span_id


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def attributes(span: ReadableSpan, *, without: tuple[str, ...] = ("server.address", "server.port")) -> dict[str, Any]:
    return {name: value for name, value in (span.attributes or {}).items() if name not in without}


# The way of a trace


@pytest.mark.parametrize("form", ["records", "events"])
async def test_an_event_is_processed_in_the_trace_in_which_it_was_sent(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen, form: str
) -> None:
    @app.processor(orders)
    async def ship(events):
        async for _ in events.records() if form == "records" else events:
            with tracer.start_as_current_span("call the carrier"):
                await asyncio.sleep(0)

    with tracer.start_as_current_span("checkout"):
        (entry_id,) = await orders.send(Order(order_id=1))
    async with running(app):
        processed = await spans.one("process orders")
    checkout, sent, inner = await spans.one("checkout"), await spans.one("send orders"), spans.named("call the carrier")
    assert {trace_id(span) for span in (checkout, sent, processed, *inner)} == {trace_id(checkout)}
    assert parent_id(sent) == span_id(checkout)
    assert parent_id(processed) == span_id(sent)
    assert [parent_id(span) for span in inner] == [span_id(processed)]
    assert [link.context.span_id for link in processed.links] == [span_id(sent)]
    assert (sent.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert attributes(sent) == {
        "messaging.system": "runnel",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "0",
        "messaging.message.id": entry_id,
    }
    assert attributes(processed) == {
        "messaging.system": "runnel",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders",
        "messaging.destination.partition.id": "0",
        "messaging.message.id": entry_id,
        "messaging.consumer.group.name": "ship",
    }
    assert processed.status.status_code is StatusCode.UNSET
    address = (sent.attributes or {})["server.address"]
    assert address in ("127.0.0.1", app.settings.redis_url.removeprefix("unix://"))
    assert address == (processed.attributes or {})["server.address"]


async def test_each_iteration_has_a_span_of_its_own_that_ends_when_the_next_event_is_asked_for(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    current: list[int] = []
    ended: list[int] = []

    @app.processor(orders)
    async def ship(events):
        async for _ in events.records():
            current.append(trace.get_current_span().get_span_context().span_id)
            ended.append(len(spans.named("process orders")))

    for number in range(3):
        await orders.send(Order(order_id=number))
    async with running(app):
        processed = await spans.several("process orders", 3)
    sent = spans.named("send orders")
    assert current == [span_id(span) for span in processed]
    assert ended == [0, 1, 2]
    assert [parent_id(span) for span in processed] == [span_id(span) for span in sent]
    assert len({trace_id(span) for span in processed}) == 3


async def test_what_was_sent_together_carries_the_context_of_one_span(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    await orders.send(*(Order(order_id=number) for number in range(3)))
    sent = await spans.one("send orders")
    assert attributes(sent)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes(sent)
    carried = [fields[b"~traceparent"] for _, fields in await inspector.entries(orders, 0)]
    assert [traceparent[:-3] for traceparent in carried] == [
        f"00-{trace_id(sent):032x}-{span_id(sent):016x}".encode()
    ] * 3


async def test_a_batch_is_one_span_with_a_link_to_each_sender(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    @app.processor(orders)
    async def ship(events):
        async for _ in events.take(3, within=5).records():
            with tracer.start_as_current_span("bulk insert"):
                pass

    ids = [entry_id for number in range(3) for entry_id in await orders.send(Order(order_id=number))]
    async with running(app):
        processed = await spans.one("process orders")
    sent = spans.named("send orders")
    assert processed.parent is None
    assert [link.context.span_id for link in processed.links] == [span_id(span) for span in sent]
    assert [dict(link.attributes or {}) for link in processed.links] == [{"messaging.message.id": one} for one in ids]
    assert attributes(processed)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in attributes(processed)
    assert parent_id(await spans.one("bulk insert")) == span_id(processed)


async def test_what_a_processor_sends_belongs_to_the_same_trace(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    parcels = app.stream("parcels", record=Order, partition_by="order_id")

    @app.processor(orders)
    async def pack(events):
        async for order in events.records():
            await parcels.send(order)

    @app.processor(parcels)
    async def ship(events):
        async for _ in events.records():
            pass

    await orders.send(Order(order_id=1))
    async with running(app):
        shipped = await spans.one("process parcels")
    (packed,), (passed_on,) = spans.named("process orders"), spans.named("send parcels")
    assert parent_id(passed_on) == span_id(packed)
    assert parent_id(shipped) == span_id(passed_on)
    assert trace_id(shipped) == trace_id(await spans.one("send orders"))


async def test_tracestate_and_baggage_arrive_as_well(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    seen: list[tuple[str, object]] = []

    @app.processor(orders)
    async def ship(events):
        async for _ in events.records():
            state = trace.get_current_span().get_span_context().trace_state
            seen.append((state.to_header(), baggage.get_baggage("tenant")))

    upstream = trace.SpanContext(
        0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=trace.TraceState([("vendor", "x")])
    )
    token = context.attach(
        baggage.set_baggage("tenant", "t1", trace.set_span_in_context(trace.NonRecordingSpan(upstream)))
    )
    await orders.send(Order(order_id=1))
    context.detach(token)
    async with running(app):
        assert trace_id(await spans.one("process orders")) == 0xABC
    assert seen == [("vendor=x", "t1")]


@pytest.mark.parametrize("headers", [(), ("~traceparent", "nonsense"), ("~traceparent", b"\xff"), (b"~\xff", "x")])
async def test_an_entry_without_a_trace_or_with_a_broken_one_begins_a_new_one(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen, headers: tuple[str | bytes, ...]
) -> None:
    @app.processor(orders)
    async def ship(events):
        async for _ in events.records():
            pass

    await orders.declare(inspector.link)
    await inspector.add(orders, 0, "data", '{"order_id": 1}', *headers)
    async with running(app):
        processed = await spans.one("process orders")
    assert processed.parent is None
    assert processed.links == ()
    assert processed.status.status_code is StatusCode.UNSET


async def test_headers_are_no_fields_of_a_record(app: App, inspector: Inspector, spans: Seen) -> None:
    class Click(Record, primitive=True):
        user: int

    clicks = app.stream("clicks", record=Click, partition_by="user")
    seen: list[Event[Click]] = []

    @app.processor(clicks)
    async def count(events):
        async for event in events:
            seen.append(event)

    await clicks.send(Click(user=7))
    async with running(app):
        await spans.one("process clicks")
    assert seen[0].data == {b"user": b"7"}
    assert seen[0].record == Click(user=7)
    assert list(seen[0].headers) == ["traceparent"]


async def test_without_the_setting_nothing_is_traced(app_name: str, redis_url: str, spans: Seen) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1)
    orders = app.stream("orders", record=Order, partition_by="order_id")
    done = asyncio.Event()

    @app.processor(orders)
    async def ship(events):
        async for _ in events.records():
            assert not trace.get_current_span().get_span_context().is_valid
            done.set()

    async with inspecting(app) as inspector, app:
        with tracer.start_as_current_span("checkout"):
            await orders.send(Order(order_id=1))
        ((_, fields),) = await inspector.entries(orders, 0)
        assert list(fields) == [b"data"]
        async with running(app):
            await done.wait()
    assert spans.named("send orders") == spans.named("process orders") == []


# Failures


async def test_a_failure_is_recorded_in_the_span_of_its_event(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    outside: list[bool] = []

    @app.processor(orders, exception_policy=ExceptionPolicy.IGNORE)
    async def ship(events):
        outside.append(trace.get_current_span().get_span_context().is_valid)
        async for order in events.records():
            if order.note == "bad":
                raise Boom("no such address")

    await orders.send(Order(order_id=1), Order(order_id=1, note="bad"), Order(order_id=1))
    async with running(app):
        first, failed, last = await spans.several("process orders", 3)
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "no such address"
    assert attributes(failed)["error.type"] == "test_tracing.Boom"
    (recorded,) = failed.events
    assert (recorded.attributes or {})["exception.message"] == "no such address"
    for fine in (first, last):
        assert fine.status.status_code is StatusCode.UNSET
        assert "error.type" not in attributes(fine)
    assert outside == [False, False]  # started again after the failure, without what was current before


async def test_an_event_that_cannot_be_decoded_fails_within_its_span(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    @app.processor(orders, exception_policy=ExceptionPolicy.IGNORE)
    async def ship(events):
        async for _ in events.records():
            pass

    await orders.declare(inspector.link)
    await inspector.add(orders, 0, "data", "no JSON")
    async with running(app):
        failed = await spans.one("process orders")
    assert attributes(failed)["error.type"] == "runnel.errors.DecodeError"


async def test_each_attempt_is_a_span_of_the_same_trace(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    @app.processor(orders, retries=2, backoff=0.01)
    async def ship(events):
        async for _ in events.records():
            if events.attempt < 3:
                raise Boom

    await orders.send(Order(order_id=1))
    async with running(app):
        attempts = await spans.several("process orders", 3)
    (sent,) = spans.named("send orders")
    assert {parent_id(span) for span in attempts} == {span_id(sent)}
    assert [attributes(span).get("messaging.runnel.attempt") for span in attempts] == [None, 2, 3]
    assert [span.status.status_code for span in attempts] == [StatusCode.ERROR, StatusCode.ERROR, StatusCode.UNSET]


async def test_a_dead_letter_stays_in_the_trace_of_its_event_and_so_does_its_replay(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    dead_letter = DeadLetterMiddleware(source=orders)

    @app.processor(orders, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
    async def ship(events):
        async for _ in events.records():
            raise Boom

    await orders.send(Order(order_id=1))
    async with running(app):
        failed = await spans.one("process orders")
    (sent,) = spans.named("send orders")
    ((_, original),) = await inspector.entries(orders, 0)
    ((_, letter),) = await inspector.entries(dead_letter.sink, 0)
    assert set(letter) == {b"data", b"~traceparent", b"~error", b"~processor", b"~source"}
    assert letter[b"~traceparent"] == original[b"~traceparent"]
    assert parent_id(await spans.one("send orders.dead")) == span_id(failed)
    assert trace_id(failed) == trace_id(sent)

    assert await replay_dead_letters(app, await plan_replay(app, orders)) == 1
    _, (_, again) = await inspector.entries(orders, 0)
    assert set(again) == {b"data", b"~traceparent", b"~replayed"}
    assert again[b"~traceparent"] == original[b"~traceparent"]


async def test_a_send_that_fails_is_recorded(app_name: str, redis_url: str, spans: Seen) -> None:
    app = App(name=app_name, redis_url=redis_url, partition_count=1, partition_size=1, on_full="raise", otel=True)
    orders = app.stream("orders", record=Order, partition_by="order_id")

    @app.processor(orders)
    async def ship(events):
        async for _ in events.records():
            raise Boom

    async with app:
        await orders.send(Order(order_id=1))
        with pytest.raises(Boom):
            async with running(app):
                await spans.one("process orders")
        with pytest.raises(StreamFull):
            await orders.send(*(Order(order_id=number) for number in range(1000)))
    failed = spans.named("send orders")[-1]
    assert failed.status.status_code is StatusCode.ERROR
    assert attributes(failed)["error.type"] == "runnel.errors.StreamFull"


async def test_what_was_given_up_at_a_hand_over_says_so(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    begun = asyncio.Event()

    @app.processor(orders, grace_period=0.05)
    async def ship(events):
        async for _ in events.records():
            begun.set()
            await asyncio.sleep(3600)

    await orders.send(Order(order_id=1))
    async with running(app):
        await begun.wait()
    given_up = await spans.one("process orders")
    assert given_up.status.status_code is StatusCode.ERROR
    assert attributes(given_up)["error.type"] == "abandoned"


# What is current, and when


async def test_an_iteration_that_is_left_by_break_ends_without_an_error(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    @app.processor(orders)
    async def ship(events):
        async for _ in events.records():
            break
        with tracer.start_as_current_span("afterwards"):  # still before the event is acknowledged
            pass

    await orders.send(Order(order_id=1))
    async with running(app):
        processed = await spans.one("process orders")
    assert processed.status.status_code is StatusCode.UNSET
    assert parent_id(spans.named("afterwards")[0]) == span_id(processed)


async def test_middleware_runs_within_the_span(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    class Traced(Middleware):
        async def handler(self, parent, **kwargs):
            async for x in parent:
                with tracer.start_as_current_span("middleware"):
                    yield x

    @app.processor(orders, middleware=[Traced()])
    async def ship(events):
        async for _ in events.records():
            with tracer.start_as_current_span("body"):
                pass

    await orders.send(Order(order_id=1))
    async with running(app):
        processed = await spans.one("process orders")
    assert parent_id(await spans.one("middleware")) == span_id(processed)
    assert parent_id(await spans.one("body")) == span_id(await spans.one("middleware"))


async def test_a_span_around_the_whole_loop_is_linked(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen
) -> None:
    current: list[bool] = []

    @app.processor(orders)
    async def ship(events):
        with tracer.start_as_current_span("partition") as outer:
            async for _ in events.records():
                pass
            current.append(trace.get_current_span() is outer)

    await orders.send(Order(order_id=1))
    async with running(app):
        processed = await spans.one("process orders")
    outer, (sent,) = await spans.one("partition"), spans.named("send orders")
    assert [link.context.span_id for link in processed.links] == [span_id(sent), span_id(outer)]
    assert current == [True]


async def test_who_asks_for_events_from_other_tasks_gets_them_all_the_same(
    app: App, orders: Stream[Order], inspector: Inspector, spans: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    @app.processor(orders)
    async def ship(events):
        records = events.records()
        while True:
            try:
                await asyncio.create_task(anext(records))
            except StopAsyncIteration:
                return

    await orders.send(*(Order(order_id=number) for number in range(3)))
    with caplog.at_level(logging.WARNING, logger="opentelemetry"):
        async with running(app):
            processed = await spans.several("process orders", 3)
    assert [span.status.status_code for span in processed] == [StatusCode.UNSET] * 3
    assert caplog.records == []


# Metrics


async def test_the_metrics_of_the_conventions_are_recorded(
    app: App,
    orders: Stream[Order],
    inspector: Inspector,
    memory: tuple[InMemorySpanExporter, InMemoryMetricReader],
    spans: Seen,
) -> None:
    stream = app.stream("measured", record=Order, partition_by="order_id")

    @app.processor(stream, exception_policy=ExceptionPolicy.IGNORE)
    async def ship(events):
        async for order in events.records():
            if order.note == "bad":
                raise Boom

    await stream.send(*(Order(order_id=number) for number in range(4)), Order(order_id=1, note="bad"))
    async with running(app):
        await spans.several("process measured", 5)
    data = memory[1].get_metrics_data()
    assert data is not None
    found: dict[tuple[str, str, str], Any] = {}
    for scope in data.resource_metrics[0].scope_metrics:
        for metric in scope.metrics:
            for point in metric.data.data_points:
                labels = dict(point.attributes or {})
                if labels["messaging.destination.name"] == "measured":
                    key = (metric.name, str(labels.get("messaging.consumer.group.name")), str(labels.get("error.type")))
                    found[key] = getattr(point, "value", getattr(point, "count", None))
    assert found == {
        ("messaging.client.sent.messages", "None", "None"): 5,
        ("messaging.client.operation.duration", "None", "None"): 1,
        ("messaging.client.consumed.messages", "ship", "None"): 4,
        ("messaging.client.consumed.messages", "ship", "test_tracing.Boom"): 1,
        ("messaging.process.duration", "ship", "None"): 4,
        ("messaging.process.duration", "ship", "test_tracing.Boom"): 1,
    }


# Packages


def test_without_the_setting_the_module_is_not_even_imported() -> None:
    code = "import sys, runnel.cli; runnel.App('a'); print('runnel.tracing' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert ended.stdout == "False\n"


def test_without_the_packages_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "runnel.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"setting otel needs .* pip install 'runnel\[otel\]'"):
        App("a", otel=True)


# The program


class Collector:
    """Receives what a worker exports."""

    def __init__(self) -> None:
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.path == "/v1/traces":
                    collector.traces.append(ExportTraceServiceRequest.FromString(body))
                else:
                    collector.metrics.append(ExportMetricsServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    made.thread.start()
    yield made
    made.server.shutdown()
    made.thread.join()
    made.server.server_close()


@pytest.fixture
def project(redis_url: str, app_name: str, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Project]:
    variables = environment(redis_url, app_name, server_binary, tmp_path)
    variables = {name: value for name, value in variables.items() if not name.startswith("OTEL_")}
    made = Project(tmp_path, variables | {"RUNNEL_OTEL": "1"})
    yield made
    made.close()


@pytest.mark.processes
def test_a_worker_exports_to_a_collector_before_it_ends(project: Project, collector: Collector) -> None:
    worker = project.start(
        "worker", "shop:app", "--processors", "counter", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME=""
    )
    worker.says("partitions assigned")
    project.send(1, 2)
    worker.says("count 2")
    assert worker.stop() == 0
    (resource,) = {
        tuple((one.key, one.value.string_value) for one in group.resource.attributes)
        for request in collector.traces
        for group in request.resource_spans
    }
    named = dict(resource)
    assert named["service.name"] == project.environment["TEST_APP"]
    assert str(worker.process.pid) in named["service.instance.id"]
    names = [
        span.name
        for request in collector.traces
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]
    assert names == ["process orders"] * 2
    measured = {
        metric.name
        for request in collector.metrics
        for group in request.resource_metrics
        for scope in group.scope_metrics
        for metric in scope.metrics
    }
    assert {"messaging.client.consumed.messages", "messaging.process.duration"} <= measured


@pytest.mark.processes
def test_a_worker_uses_the_exporter_and_the_names_that_the_variables_ask_for(project: Project) -> None:
    worker = project.start(
        "worker",
        "shop:app",
        "--processors",
        "counter",
        OTEL_TRACES_EXPORTER="console",
        OTEL_METRICS_EXPORTER="none",
        OTEL_SERVICE_NAME="warehouse",
    )
    worker.says("partitions assigned")
    project.send(1)
    worker.says("count 1")
    assert worker.stop() == 0
    shown = json.loads(worker.stdout.partition("count 1\n")[2])
    assert shown["name"] == "process orders"
    assert shown["resource"]["attributes"]["service.name"] == "warehouse"


@pytest.mark.processes
def test_a_worker_leaves_alone_what_the_program_has_configured(project: Project) -> None:
    project.write(
        own="""
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
from shop import app

provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: "own " + span.name + "\\n")))
trace.set_tracer_provider(provider)
"""
    )
    worker = project.start("worker", "own:app", "--processors", "counter", OTEL_TRACES_EXPORTER="console")
    worker.says("partitions assigned")
    project.send(1)
    worker.says("own process orders")
    assert worker.stop() == 0
    assert worker.stdout.count("process orders") == 1


@pytest.mark.processes
def test_an_exporter_that_is_not_there_is_an_error_that_names_those_that_are(project: Project) -> None:
    ended = project.run("worker", "shop:app", OTEL_TRACES_EXPORTER="zipkin")
    assert ended.returncode == 4
    assert 'exporter "zipkin" for traces is not installed. There are: none, otlp, console, otlp_proto_' in ended.stderr
    assert "Traceback" not in ended.stderr
