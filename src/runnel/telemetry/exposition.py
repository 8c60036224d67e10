"""Figures in the text format of Prometheus."""

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from runnel._core.meters import Histogram
from runnel.telemetry.figures import Figure, Figures

__all__ = ["CONTENT_TYPE", "Exposition"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Exposition(Collector):
    """Writes the figures of a worker, and those of its process (CPU, memory, open files)."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def text(self) -> bytes:
        """All of them now."""
        return generate_latest(self._registry)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the registry need not collect to register us."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        return map(_family, self._figures.collect())


def _family(figure: Figure) -> Metric:
    metric = figure.metric
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
        for labels, measured in figure.histograms.items():
            histogram.add_metric(labels, _buckets(measured), measured.total)
        return histogram
    family: CounterMetricFamily | GaugeMetricFamily
    if metric.kind == "counter":
        family = CounterMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    else:
        family = GaugeMetricFamily(metric.name, metric.meaning, labels=metric.labels)
    for labels, value in figure.values.items():
        family.add_metric(labels, value)
    return family


def _buckets(measured: Histogram) -> list[tuple[str, float]]:
    """Bound and number of values up to it; Prometheus wants sums."""
    names = [*map(str, map(float, measured.bounds)), "+Inf"]
    return list(zip(names, accumulate(measured.counts[:]), strict=True))
