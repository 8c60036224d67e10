"""Configures the OpenTelemetry SDK of a worker's process, by OpenTelemetry's own variables.

Which exporters is decided here; where they send to, how often, with which sampler and attributes, the SDK itself takes
from ``OTEL_*``. What is left at the end of the process is sent by the SDK's own exit handlers.
"""

from importlib.metadata import entry_points
from typing import Any

from opentelemetry import metrics, trace

from runnel.errors import ConfigurationError
from runnel.settings import otel_exporters

__all__ = ["export"]


def export(app: str, worker: str) -> None:
    """Send traces and metrics to where the variables say: by OTLP over HTTP, if they say nothing.

    Does nothing if the program has configured traces itself, or was started by ``opentelemetry-instrument``.

    Arguments:
        app: the name of the service, unless ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` says another one.
        worker: the id of its instance, in the same way.

    Raises:
        ConfigurationError: a package is missing, or there is no exporter of that name.
    """
    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return
    try:
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The setting otel needs packages that are not installed ({error.name}): pip install 'runnel[otel]'"
        ) from None
    resource = Resource.create(
        {"service.name": app, "service.instance.id": worker, **OTELResourceDetector().detect().attributes}
    )
    if exporters := _exporters("traces"):
        tracers = TracerProvider(resource=resource)
        for exporter in exporters:
            tracers.add_span_processor(BatchSpanProcessor(exporter))
        trace.set_tracer_provider(tracers)
    if exporters := _exporters("metrics"):
        metrics.set_meter_provider(MeterProvider(list(map(PeriodicExportingMetricReader, exporters)), resource))


def _exporters(signal: str) -> list[Any]:
    """New ones."""
    offered = entry_points(group=f"opentelemetry_{signal}_exporter")
    exporters = []
    for name in otel_exporters(signal):
        if name not in offered.names:
            raise ConfigurationError(
                f'OpenTelemetry\'s exporter "{name}" for {signal} is not installed. There are: none, otlp, '
                f"{', '.join(sorted(offered.names))}. Set OTEL_{signal.upper()}_EXPORTER to one of these, or install "
                f"that one; it may be the package opentelemetry-exporter-{name.replace('_', '-')}."
            )
        exporters.append(offered[name].load()())
    return exporters
