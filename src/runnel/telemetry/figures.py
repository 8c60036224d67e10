"""Every metric of a worker: its name, its unit, its labels, and where its value comes from.

Counts what is announced, and reads the rest from the worker when it is asked. ``docs/metrics.md`` has the same table.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata

from runnel import instruments as i
from runnel._core.meters import Histogram
from runnel._core.partitions import PartitionState
from runnel._worker import Worker
from runnel.telemetry.lag import Lags

__all__ = ["METRICS", "Figure", "Figures", "Metric"]


@dataclass(frozen=True, slots=True)
class Metric:
    """What a figure means.

    Attributes:
        name: with its unit; ``_total`` for counters.
        kind: ``counter``, ``gauge`` or ``histogram``.
        labels: their names.
        meaning: one sentence.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


_BY_PROCESSOR = ("processor",)

METRICS = {
    metric.name: metric
    for metric in (
        Metric("runnel_info", "gauge", ("app", "version", "server"), "Always 1."),
        Metric("runnel_member_joined", "gauge", _BY_PROCESSOR, "1 while the worker has a seat in the group."),
        Metric("runnel_partitions", "gauge", _BY_PROCESSOR, "Partitions of its stream."),
        Metric("runnel_partitions_owned", "gauge", _BY_PROCESSOR, "Partitions that the worker has."),
        Metric("runnel_partitions_quarantined", "gauge", _BY_PROCESSOR, "Of these, stopped because an event failed."),
        Metric(
            "runnel_partitions_paused",
            "gauge",
            _BY_PROCESSOR,
            "Of these, stopped because somebody has paused the processor.",
        ),
        Metric(
            "runnel_partitions_stalled", "gauge", _BY_PROCESSOR, "Of these, with events that wait and without progress."
        ),
        Metric("runnel_lag_events", "gauge", ("processor", "partition"), "Events of an owned partition not processed."),
        Metric("runnel_lag_seconds", "gauge", ("processor", "partition"), "Age of the oldest of these."),
        Metric("runnel_in_flight_events", "gauge", _BY_PROCESSOR, "Events that handlers are working on."),
        Metric("runnel_buffer_events", "gauge", _BY_PROCESSOR, "Events read ahead and not handed out."),
        Metric("runnel_buffer_capacity_events", "gauge", _BY_PROCESSOR, "Room for such events."),
        Metric("runnel_processed_events_total", "counter", _BY_PROCESSOR, "Events processed without failure."),
        Metric("runnel_failed_events_total", "counter", ("processor", "policy"), "Events that failed for good."),
        Metric("runnel_retries_total", "counter", _BY_PROCESSOR, "Failed attempts that are followed by another one."),
        Metric("runnel_dead_letters_total", "counter", ("processor", "sink"), "Failed events forwarded to a stream."),
        Metric("runnel_handler_seconds", "histogram", _BY_PROCESSOR, "Time for an event or batch in the processor."),
        Metric("runnel_end_to_end_seconds", "histogram", _BY_PROCESSOR, "Time from appending to processed, by event."),
        Metric("runnel_commits_total", "counter", _BY_PROCESSOR, "Positions written to Redis."),
        Metric("runnel_rebalances_total", "counter", _BY_PROCESSOR, "Changes of the assignment that were seen."),
        Metric("runnel_partitions_gained_total", "counter", _BY_PROCESSOR, "Partitions taken over."),
        Metric("runnel_partitions_released_total", "counter", _BY_PROCESSOR, "Partitions handed back in good order."),
        Metric("runnel_partitions_lost_total", "counter", _BY_PROCESSOR, "Partitions taken away from the worker."),
        Metric(
            "runnel_evictions_total", "counter", _BY_PROCESSOR, "Times that the worker had been silent for too long."
        ),
        Metric("runnel_lost_events_total", "counter", _BY_PROCESSOR, "Events removed before they were processed."),
        Metric("runnel_rewinds_total", "counter", ("processor", "reason"), "Positions that were moved in Redis."),
        Metric(
            "runnel_sequence_gaps_total", "counter", ("stream",), "Times that Redis had lost events sent from here."
        ),
        Metric("runnel_task_failures_total", "counter", ("task",), "Failures of background tasks."),
        Metric("runnel_redis_errors_total", "counter", ("operation",), "Operations that had to wait for Redis."),
        Metric("runnel_redis_waiting", "gauge", (), "Operations that are waiting for Redis now."),
    )
}


@dataclass(slots=True)
class Figure:
    """A metric with its values, by the values of its labels."""

    metric: Metric
    values: dict[tuple[str, ...], float] = field(default_factory=dict)
    histograms: dict[tuple[str, ...], Histogram] = field(default_factory=dict)


class Figures:
    """The figures of one worker. Subscribe :meth:`hear` to the instruments of its app; collect from any thread."""

    def __init__(self, worker: Worker, lags: Lags) -> None:
        """Arguments:
        worker: measured, see there.
        lags: how far it is behind.
        """
        self._worker = worker
        self._lags = lags
        self._lock = threading.Lock()  # two threads announce; rarely, so that it costs nothing
        self._counts: Counter[tuple[str, tuple[str, ...]]] = Counter()
        self._waiting = 0
        names = [processor.name for processor in worker.processors]
        for metric in METRICS.values():  # an alert on an increase needs the zero before it
            if metric.kind == "counter" and metric.labels == _BY_PROCESSOR:
                self._counts.update({(metric.name, (name,)): 0 for name in names})
        for processor in worker.processors:
            self._counts["runnel_failed_events_total", (processor.name, processor.exception_policy.value)] = 0

    def hear(self, announcement: i.Announcement) -> None:
        """Count an announcement."""
        match announcement:
            case i.PartitionFailed(processor, _, event_ids, policy):
                self._count("runnel_failed_events_total", processor, policy, by=len(event_ids))
            case i.AttemptFailed(processor):
                self._count("runnel_retries_total", processor)
            case i.DeadLettered(processor=processor, sink=sink):
                self._count("runnel_dead_letters_total", processor, sink)
            case i.PartitionGained(processor):
                self._count("runnel_partitions_gained_total", processor)
            case i.PartitionReleased(processor):
                self._count("runnel_partitions_released_total", processor)
            case i.PartitionLost(processor):
                self._count("runnel_partitions_lost_total", processor)
            case i.MemberEvicted(processor):
                self._count("runnel_evictions_total", processor)
            case i.LossDetected(processor, _, entries):
                self._count("runnel_lost_events_total", processor, by=entries)
            case i.PartitionRewound(processor, _, reason):
                self._count("runnel_rewinds_total", processor, reason)
            case i.LogReplaced(processor):
                self._count("runnel_rewinds_total", processor, "replaced")
            case i.SequenceGap(stream):
                self._count("runnel_sequence_gaps_total", stream)
            case i.TaskFailed(task):
                self._count("runnel_task_failures_total", task)
            case i.RedisLost(role):
                self._count("runnel_redis_errors_total", role)
                self._wait(+1)
            case i.RedisRecovered() | i.RedisGivenUp():
                self._wait(-1)

    def _count(self, name: str, *labels: str, by: int = 1) -> None:
        with self._lock:
            self._counts[name, labels] += by

    def _wait(self, change: int) -> None:
        with self._lock:
            self._waiting += change

    def collect(self) -> Iterator[Figure]:
        """All figures as they are now."""
        found = {name: Figure(metric) for name, metric in METRICS.items()}
        with self._lock:
            counts, waiting = dict(self._counts), self._waiting
        for (name, labels), count in counts.items():
            found[name].values[labels] = count
        worker = self._worker
        found["runnel_info"].values[worker.app.name, metadata.version("runnel"), worker.server] = 1
        found["runnel_redis_waiting"].values[()] = waiting
        for (processor, partition), lag in self._lags.now().items():
            found["runnel_lag_events"].values[processor, str(partition)] = lag.events
            found["runnel_lag_seconds"].values[processor, str(partition)] = lag.seconds
        for member in worker.members:
            labels = (member.processor.name,)
            owned = [
                consumer
                for consumer in member.consumers
                if consumer.state not in (PartitionState.GRANTED, PartitionState.RELEASED, PartitionState.LOST)
            ]
            parked = [consumer for consumer in owned if consumer.state is PartitionState.PARKED]
            quarantined = sum(consumer.quarantined for consumer in parked)
            gauges: dict[str, float] = {
                "runnel_member_joined": member.holder.joined,
                "runnel_partitions": member.generation.partition_count,
                "runnel_partitions_owned": len(owned),
                "runnel_partitions_quarantined": quarantined,
                "runnel_partitions_paused": len(parked) - quarantined,
                "runnel_partitions_stalled": len(member.stalled),
                "runnel_in_flight_events": sum(consumer.in_flight for consumer in owned),
                "runnel_buffer_events": sum(len(consumer.feed.entries) for consumer in owned),
                "runnel_buffer_capacity_events": sum(consumer.feed.capacity for consumer in owned),
                "runnel_commits_total": member.commits,
                "runnel_rebalances_total": member.rebalances,
            }
            for name, value in gauges.items():
                found[name].values[labels] = value
            if member.meter is not None:
                found["runnel_processed_events_total"].values[labels] = member.meter.processed
                found["runnel_handler_seconds"].histograms[labels] = member.meter.handler
                found["runnel_end_to_end_seconds"].histograms[labels] = member.meter.end_to_end
        yield from found.values()
