"""Public constants."""

from enum import Enum

__all__ = ["ExceptionPolicy"]


class ExceptionPolicy(str, Enum):
    """What becomes of a partition when a processor's function raises, or an event cannot be decoded.

    * ``HALT``, the default: stop the worker with exit status 1. Nothing is skipped.
    * ``QUARANTINE``: stop this partition only; the others go on.
    * ``IGNORE``: the failed event or batch counts as done, and the function is started again with what follows it.

    Where the processor has ``retries``, they come first.

    Example:
        ``@app.processor(orders, exception_policy=ExceptionPolicy.QUARANTINE)``
    """

    HALT = "halt"
    """Stop the worker with exit status 1. Nothing is skipped. The default."""

    QUARANTINE = "quarantine"
    """Stop this partition only; the others go on. It stays stopped until the event is retried or skipped
    (``runnel quarantine``), or its worker ends."""

    IGNORE = "ignore"
    """Acknowledge the failed event or batch, and start the function again with what follows it. If middleware fails
    while it finishes because of that (a dead letter cannot be sent, for instance): as ``HALT``."""
