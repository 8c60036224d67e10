"""What a worker tells about itself: figures for Prometheus and OpenTelemetry, and the answers to probes.

``figures`` knows every metric, ``lag`` looks how far a worker is behind, ``exposition`` writes figures for Prometheus,
``http`` serves them together with the probes, and ``otel`` hands them to an OpenTelemetry SDK. Nothing here runs unless
a worker is told to.
"""
