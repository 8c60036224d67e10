"""What a worker tells about itself: figures for Prometheus, the answers to probes, and where traces go.

``figures`` knows every metric, ``lag`` looks how far a worker is behind, ``exposition`` writes figures for Prometheus,
``http`` serves them together with the probes, and ``otel`` configures an OpenTelemetry SDK for what ``runnel.tracing``
makes. Nothing here runs unless a worker is told to.
"""
