"""Health and metrics of a real worker: what is served, what it means, and when."""

import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from program import Order, Project, Running, environment, until
from runnel import App
from runnel._core.meters import END_TO_END_BOUNDS, HANDLER_BOUNDS, Histogram, Meter, Stopwatch
from runnel._worker import Worker
from runnel._worker.heartbeats import Heartbeats
from runnel.server import EmbeddedServer
from runnel.server.address import free_port
from runnel.telemetry.figures import METRICS

ROOT = Path(__file__).parent.parent

FLAKY = """
import os
import time

from runnel import ExceptionPolicy
from runnel.middleware import DeadLetterMiddleware
from shop import app, orders

dead_letter = DeadLetterMiddleware(source=orders)


@app.processor(orders, retries=2, backoff=0.01, exception_policy=ExceptionPolicy.IGNORE, middleware=[dead_letter])
async def flaky(events):
    async for order in events.records():
        if order.note == "block":
            print("blocking")
            time.sleep(order.amount)
        if order.note == "once" and events.attempt == 1:
            raise ValueError("once")
        if order.note == "bad":
            raise ValueError("bad")


@app.processor(orders)
async def batches(events):
    async for batch in events.take(10, within=0.01):
        pass


@app.processor(dead_letter.sink)
async def dead(events):
    async for event in events:
        print("dead", event.order_id)
"""

STUBBORN = """
from runnel import ExceptionPolicy
from shop import app, orders


@app.processor(orders, exception_policy=ExceptionPolicy.QUARANTINE)
async def stubborn(events):
    async for order in events.records():
        if order.note == "bad":
            raise ValueError("bad")
"""


@pytest.fixture
def project(redis_url: str, app_name: str, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path, environment(redis_url, app_name, server_binary, tmp_path))
    made.write(flaky=FLAKY)
    yield made
    made.close()


def serving(worker: Running, number: int = 0) -> str:
    """The address of health and metrics, when the worker has printed it."""
    worker.says("health and metrics are served", number + 1)
    return re.findall(r"url=(\S+)", worker.stderr)[number]


def get(url: str) -> tuple[int, str]:
    """Status and body."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def samples(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """All values, by name and labels."""
    status, text = get(f"{url}/metrics")
    assert status == 200
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(url: str, name: str, **labels: str) -> float | None:
    return samples(url).get((name, tuple(sorted(labels.items()))))


@pytest.mark.processes
def test_the_metrics_tell_what_has_happened(project: Project) -> None:
    worker = project.start("worker", "flaky:app", "--processors", "flaky,batches,dead", "--http", "0")
    url = serving(worker)
    assert url.startswith("http://127.0.0.1:")
    worker.says("partitions assigned", 3)
    project.send(*range(20))
    project.send(1, note="once")
    project.send(2, note="bad")
    worker.says("dead 2")
    until(lambda: value(url, "runnel_processed_events_total", processor="batches") == 22, lambda: get(url)[1])
    until(lambda: value(url, "runnel_processed_events_total", processor="flaky") == 21, lambda: get(url)[1])
    found = samples(url)
    flaky = ("processor", "flaky")
    expected = {
        ("runnel_retries_total", (flaky,)): 3.0,
        ("runnel_failed_events_total", (("policy", "ignore"), flaky)): 1.0,
        ("runnel_failed_events_total", (("policy", "halt"), ("processor", "batches"))): 0.0,
        ("runnel_dead_letters_total", (flaky, ("sink", "orders.dead"))): 1.0,
        ("runnel_handler_seconds_count", (flaky,)): 21.0,
        ("runnel_end_to_end_seconds_count", (flaky,)): 21.0,
        ("runnel_end_to_end_seconds_count", (("processor", "batches"),)): 22.0,
        ("runnel_partitions", (flaky,)): 4.0,
        ("runnel_partitions_owned", (flaky,)): 4.0,
        ("runnel_partitions_gained_total", (flaky,)): 4.0,
        ("runnel_partitions_lost_total", (flaky,)): 0.0,
        ("runnel_member_joined", (flaky,)): 1.0,
        ("runnel_in_flight_events", (flaky,)): 0.0,
        ("runnel_buffer_events", (flaky,)): 0.0,
        ("runnel_lost_events_total", (flaky,)): 0.0,
        ("runnel_redis_waiting", ()): 0.0,
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["runnel_buffer_capacity_events", (flaky,)] >= 4 * 2 * 8, "more, if it had to wait for events"
    batches = found["runnel_handler_seconds_count", (("processor", "batches"),)]
    assert 1 <= batches <= 22, "a batch is one value"
    assert 0 < found["runnel_commits_total", (flaky,)] <= 22
    assert found["runnel_rebalances_total", (flaky,)] >= 1
    assert 0 < found["runnel_end_to_end_seconds_sum", (flaky,)] < 21 * 10
    assert worker.stop() == 0


@pytest.mark.processes
def test_the_lag_is_that_of_the_owned_partitions_in_events_and_seconds(project: Project) -> None:
    project.send(1, 1, 1, note="slow")
    time.sleep(0.3)  # let it grow old; the value is compared with what it must be at least
    worker = project.start("worker", "shop:app", "--processors", "printer", "--http", "0")
    url = serving(worker)
    worker.says("begin 1")

    def lagging() -> dict[str, float]:
        return {
            dict(labels)["partition"]: events
            for (name, labels), events in samples(url).items()
            if name == "runnel_lag_events" and events
        }

    until(lambda: list(lagging().values()) == [3.0], lambda: get(f"{url}/metrics")[1])
    (partition,) = lagging()
    seconds = value(url, "runnel_lag_seconds", processor="printer", partition=partition)
    assert seconds is not None
    assert 0.3 <= seconds < 60
    (project.directory / "gate").touch()
    worker.says("end 1", 3)
    until(lambda: lagging() == {}, lambda: get(f"{url}/metrics")[1])
    assert value(url, "runnel_lag_seconds", processor="printer", partition=partition) == 0
    assert worker.stop() == 0


@pytest.mark.processes
def test_what_is_paused_and_what_is_quarantined_are_two_figures(project: Project) -> None:
    worker = project.start(
        *("worker", "shop:app", "--processors", "printer", "--http", "0"), RUNNEL_EXCEPTION_POLICY="quarantine"
    )
    url = serving(worker)
    worker.says("partitions assigned")

    def figures() -> tuple[float | None, float | None]:
        found = samples(url)
        names = ("runnel_partitions_paused", "runnel_partitions_quarantined")
        paused, quarantined = (found.get((name, (("processor", "printer"),))) for name in names)
        return paused, quarantined

    project.send(1, note="bad")
    until(lambda: figures() == (0, 1), lambda: get(f"{url}/metrics")[1])
    assert value(url, "runnel_in_flight_events", processor="printer") == 0, "nobody is working on what has failed"
    assert project.run("processor", "pause", "shop:printer").returncode == 0
    until(lambda: figures() == (3, 1), lambda: get(f"{url}/metrics")[1])
    assert project.run("quarantine", "retry", "shop:printer").returncode == 0
    until(lambda: figures() == (4, 0), lambda: get(f"{url}/metrics")[1])
    assert project.run("processor", "resume", "shop:printer").returncode == 0
    until(lambda: figures() == (0, 1), lambda: get(f"{url}/metrics")[1])
    assert worker.stop() == 0


@pytest.mark.processes
def test_a_handler_that_blocks_the_event_loop_is_alive_and_ready(project: Project) -> None:
    worker = project.start("worker", "flaky:app", "--processors", "flaky", "--http", "0", RUNNEL_SESSION_TIMEOUT="1")
    url = serving(worker)
    worker.says("partitions assigned")
    assert project.run("send", "flaky:orders", '{"order_id": 1, "note": "block", "amount": 3}').returncode == 0
    worker.says("blocking")
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        assert get(f"{url}/livez") == (200, "alive\n")
        assert get(f"{url}/readyz") == (200, "ready\n")
        assert value(url, "runnel_in_flight_events", processor="flaky") == 1
    assert worker.stop() == 0


@pytest.mark.processes
def test_without_redis_a_worker_is_alive_but_not_ready(
    project: Project, server_binary: str | Path | None, tmp_path: Path
) -> None:
    port = free_port("127.0.0.1")
    with EmbeddedServer(binary=server_binary, port=port, data_dir=tmp_path / "data", append_only=True) as server:
        project.environment["RUNNEL_REDIS_URL"] = server.url
        worker = project.start("worker", "shop:app", "--http", "0", RUNNEL_SESSION_TIMEOUT="1")
        url = serving(worker)
        until(lambda: get(f"{url}/readyz")[0] == 200, lambda: worker.stderr)
        server.stop()
        until(lambda: get(f"{url}/readyz") == (503, "not joined, or no answer from Redis\n"), lambda: worker.stderr)
        assert get(f"{url}/livez")[0] == 200
        until(lambda: (value(url, "runnel_redis_waiting") or 0) > 0, lambda: worker.stderr)
        assert sum(v for (name, _), v in samples(url).items() if name == "runnel_redis_errors_total") > 0
        server.start()
        until(lambda: get(f"{url}/readyz")[0] == 200, lambda: worker.stderr)
        until(lambda: value(url, "runnel_redis_waiting") == 0, lambda: worker.stderr)
        assert worker.stop() == 0


@pytest.mark.processes
def test_a_worker_that_stops_is_not_ready_but_alive_until_the_end(project: Project) -> None:
    worker = project.start("worker", "shop:app", "--http", "0")
    url = serving(worker)
    project.send(1, note="slow")
    worker.says("begin 1")
    worker.tell(signal.SIGTERM)
    worker.says("stopping")
    assert get(f"{url}/readyz") == (503, "stopping\n")
    assert get(f"{url}/livez")[0] == 200
    (project.directory / "gate").touch()
    assert worker.ends() == 0


@pytest.mark.processes
def test_what_is_paused_is_not_quarantined(project: Project) -> None:
    project.write(stubborn=STUBBORN)
    worker = project.start("worker", "stubborn:app", "--processors", "stubborn", "--http", "0")
    url = serving(worker)
    worker.says("partitions assigned")
    project.send(1, note="bad")
    quarantined = ("runnel_partitions_quarantined", (("processor", "stubborn"),))
    until(lambda: samples(url)[quarantined] == 1, lambda: worker.stderr)
    assert project.run("processor", "pause", "stubborn:stubborn").returncode == 0
    worker.says("] paused ")
    assert samples(url)[quarantined] == 1, "three are only paused"
    assert value(url, "runnel_partitions_owned", processor="stubborn") == 4
    assert worker.stop() == 0


@pytest.mark.processes
def test_what_is_buffered_is_never_more_than_there_is_said_to_be_room_for(project: Project) -> None:
    worker = project.start("worker", "shop:app", "--processors", "counter", "--http", "0", RUNNEL_PREFETCH_COUNT="2")
    url = serving(worker)
    worker.says("partitions assigned")
    assert value(url, "runnel_buffer_capacity_events", processor="counter"), "before anything was read"
    assert project.run("processor", "pause", "shop:counter").returncode == 0
    worker.says("] paused ")
    for _ in range(10):
        project.send(*[1] * 300)
    assert project.run("processor", "resume", "shop:counter").returncode == 0
    buffered: list[float] = []

    def done() -> bool:
        found = samples(url)
        fill, room = (
            found[f"runnel_buffer_{name}", (("processor", "counter"),)] for name in ("events", "capacity_events")
        )
        assert fill <= room
        buffered.append(fill)
        return found["runnel_processed_events_total", (("processor", "counter"),)] == 3000

    until(done, lambda: get(f"{url}/metrics")[1])
    room = value(url, "runnel_buffer_capacity_events", processor="counter")
    assert room is not None
    assert room > 2 * 2 * 4, "it reads more at a time than it began with"
    assert worker.stop() == 0


@pytest.mark.processes
def test_counters_go_on_where_the_stream_is_divided_anew(project: Project) -> None:
    worker = project.start("worker", "shop:app", "--processors", "counter", "--http", "0")
    url = serving(worker)
    worker.says("partitions assigned")
    for number in range(3):
        project.send(number)
        worker.says(f"count {number}")
    until(lambda: project.waiting("counter") == 0, lambda: worker.stderr)
    commits = value(url, "runnel_commits_total", processor="counter")
    assert commits is not None
    assert commits >= 3
    ended = project.run("stream", "migrate", "shop:orders", "--partitions", "6", "--execute", "--no-wait")
    assert ended.returncode == 0, ended.stderr
    until(
        lambda: value(url, "runnel_partitions_owned", processor="counter") == 6,
        lambda: worker.stderr + get(f"{url}/metrics")[1],
    )
    assert value(url, "runnel_partitions", processor="counter") == 6
    after = value(url, "runnel_commits_total", processor="counter")
    assert after is not None
    assert after >= commits
    assert worker.stop() == 0


@pytest.mark.anyio
async def test_a_worker_lives_while_its_heartbeats_are_being_started(
    redis_url: str, app_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = App(name=app_name, redis_url=redis_url)
    orders = app.stream("orders", record=Order, partition_by="order_id")

    @app.processor(orders)
    async def ship(events: object) -> None: ...

    worker = Worker(app)
    lives: list[bool] = []
    start = Heartbeats.start

    def asked_meanwhile(heartbeats: Heartbeats) -> None:
        lives.append(worker.responds(1.0))
        assert not worker.ready, "it has not joined"
        start(heartbeats)
        worker.stop("seen")

    monkeypatch.setattr(Heartbeats, "start", asked_meanwhile)
    assert await worker.run() == 0
    assert lives == [True]


@pytest.mark.processes
def test_each_process_has_a_port_of_its_own(project: Project) -> None:
    port = free_port("127.0.0.1")
    worker = project.start("worker", "shop:app", "-p", "2", "--http", str(port), "--processors", "counter")
    worker.says("joined", 2)
    for number in range(2):
        url = f"http://127.0.0.1:{port + number}"
        until(lambda url=url: value(url, "runnel_partitions_owned", processor="counter") == 2, lambda: worker.stderr)
    assert worker.stop() == 0


@pytest.mark.processes
@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "127.0.0.1:", "70000", "-1", "host:port"])
def test_an_address_that_is_none_is_refused(project: Project, address: str) -> None:
    ended = project.run("worker", "shop:app", f"--http={address}")
    assert ended.returncode == 2
    assert "--http" in ended.stderr
    assert "is no address" in ended.stderr


@pytest.mark.processes
def test_a_port_that_is_taken_and_a_host_that_is_not_ours_are_refused(project: Project) -> None:
    worker = project.start("worker", "shop:app", "--http", "0")
    port = serving(worker).rpartition(":")[2]
    ended = project.run("worker", "shop:app", "--http", port)
    assert ended.returncode == 4
    assert f"Cannot listen on 127.0.0.1:{port} for --http (Address already in use)" in ended.stderr
    elsewhere = project.run("worker", "shop:app", "--http", "192.0.2.1:9100")
    assert elsewhere.returncode == 4
    assert "Cannot listen on 192.0.2.1:9100" in elsewhere.stderr
    assert worker.stop() == 0


# The tables


@pytest.mark.processes
def test_the_table_of_metrics_is_what_a_worker_serves(project: Project) -> None:
    worker = project.start("worker", "shop:app", "--http", "0")
    url = serving(worker)
    served = dict(re.findall(r"^# TYPE (runnel_\w+) (\w+)$", get(f"{url}/metrics")[1], re.MULTILINE))
    assert worker.stop() == 0
    assert served == {name: metric.kind for name, metric in METRICS.items()}
    table = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(runnel_\w+)` \| (\w+) \| (.*?) \| (.+) \|$", table, re.MULTILINE)
    assert [row[0] for row in rows] == list(METRICS)
    for name, kind, labels, meaning in rows:
        metric = METRICS[name]
        assert kind == metric.kind, name
        assert labels == (", ".join(f"`{label}`" for label in metric.labels) or "none"), name
        assert meaning.startswith(metric.meaning.rstrip(".")), name


# Histograms


@given(st.lists(st.integers(min_value=0, max_value=5_000_000), min_size=1).map(sorted))
def test_ages_in_a_batch_are_counted_as_if_each_were_looked_at(appended: list[int]) -> None:
    meter, expected, now = Meter(), Histogram(END_TO_END_BOUNDS), 5_000.0
    for milliseconds in appended:
        expected.add(now - milliseconds / 1000)
    meter.batch(0.2, [b"%d-0" % milliseconds for milliseconds in appended], now)
    assert meter.processed == len(appended)
    assert meter.end_to_end.counts == expected.counts
    assert meter.handler.counts == [0] * 8 + [1] + [0] * 8
    # Where they fall into one bucket, they count as what lies in the middle between the first and the last one.
    widest = max(high - low for low, high in pairwise((0, *END_TO_END_BOUNDS)))
    assert meter.end_to_end.total == pytest.approx(expected.total, abs=widest * len(appended))


RUNS = st.lists(
    st.tuples(
        st.lists(st.integers(min_value=0, max_value=400).map(lambda units: units / 1_000_000), min_size=1, max_size=30),
        st.booleans(),
        st.integers(min_value=0, max_value=30_000).map(lambda units: units / 1_000_000),
    ),
    max_size=8,
)
"""Runs: what each event takes in seconds, whether the last one fails, and how long it is quiet after that."""


@given(RUNS)
def test_a_stopwatch_counts_like_one_that_times_each_event(runs: list[tuple[list[float], bool, float]]) -> None:
    meter, expected = Meter(), Histogram(HANDLER_BOUNDS)
    watch = Stopwatch(meter, lambda monotonic: 1_000.0 + monotonic)
    now, done = 5.0, 0
    for durations, fails, quiet in runs:
        for position, took in enumerate(durations):
            entry_id = b"%d-%d" % ((1_000 + now) * 1000, position)
            if now >= watch.mark:
                watch.look(entry_id, now, done)
            watch.at = now
            now, before = now + took, now
            if position < len(durations) - 1 or not fails:
                expected.add(now - before)
                done += 1
        (watch.fail if fails else watch.end)(entry_id, now, done)
        assert not watch.mark
        now += quiet
    watch.count()
    assert meter.processed == done
    assert meter.handler.counts == expected.counts
    assert meter.handler.total == pytest.approx(expected.total, abs=1e-6)
    assert sum(meter.end_to_end.counts) == done
    assert meter.end_to_end.total >= 0


def test_ages_of_a_run_are_those_of_its_first_and_its_last_event() -> None:
    meter = Meter()
    watch = Stopwatch(meter, lambda monotonic: monotonic)
    for number, now in enumerate((10.0, 10.25, 10.5)):
        if now >= watch.mark:
            watch.look(b"%d-0" % (9_000 + 500 * number), now, number)
        watch.at = now
    watch.end(b"10000-0", 10.75, 3)
    watch.count()
    # The last one, two times: 10.75 - 10.0. The first one: 10.25 - 9.0.
    assert meter.end_to_end.total == pytest.approx(2 * 0.75 + 1.25)
    assert meter.handler.total == pytest.approx(0.75)
