"""Public constants."""

from enum import Enum

__all__ = ["ExceptionPolicy"]


class ExceptionPolicy(str, Enum):
    """What becomes of a partition when a processor's function raises, or an event cannot be decoded.

    Example:
        ``@app.processor(orders, exception_policy=ExceptionPolicy.QUARANTINE)``
    """

    HALT = "halt"
    """Stop the worker with exit status 1. Nothing is skipped. The default."""

    QUARANTINE = "quarantine"
    """Stop this partition only. It stays stopped until its worker restarts; the others go on."""

    IGNORE = "ignore"
    """Acknowledge the failed event or batch, and start the function again with what follows it."""
