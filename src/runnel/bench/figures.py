"""From many single values to a few figures."""

import statistics
from collections.abc import Sequence

__all__ = ["latencies"]


def latencies(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 99th percentile, in milliseconds. The first tenth, while connections are made, does not count."""
    counted = sorted(seconds[len(seconds) // 10 :])
    return {
        "median_ms": statistics.median(counted) * 1000,
        "p99_ms": counted[min(len(counted) - 1, int(len(counted) * 0.99))] * 1000,
    }
