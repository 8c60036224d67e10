"""A processor: the user's function, and how it is to be run."""

import inspect
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from runnel.constants import ExceptionPolicy
from runnel.errors import ConfigurationError
from runnel.events import Events
from runnel.interfaces import Middleware
from runnel.middleware import DeadLetterMiddleware
from runnel.records import Record
from runnel.streams import Stream

__all__ = ["Processor"]

R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True, eq=False)
class Processor(Generic[R]):
    """What ``@app.processor`` makes of a function. Calling it calls the function, for tests of the function alone.

    Attributes:
        name: unique within the app; part of the keys in Redis that hold positions.
        stream: what it processes.
        function: run once per partition.
        exception_policy: what becomes of a partition when the function raises.
        retries: how often a failing event or batch is tried again before that.
        backoff: seconds before the first of these attempts, at most; doubles with each.
        backoff_max: the longest wait before an attempt, in seconds.
        middleware: from the source outwards.
        prefetch_count: events read at a time per partition.
        commit: ``auto`` or ``each``.
        grace_period: seconds that the event in progress may take when the partition is handed over.
        stall_timeout: seconds without progress after which the log and the metrics say so.
    """

    name: str
    stream: Stream[R]
    function: Callable[[Events[R]], Awaitable[Any]]
    exception_policy: ExceptionPolicy
    retries: int
    backoff: float
    backoff_max: float
    middleware: Sequence[Middleware]
    prefetch_count: int
    commit: str
    grace_period: float
    stall_timeout: float

    def __post_init__(self) -> None:
        """Refuse what cannot run.

        Raises:
            ConfigurationError: the function is no coroutine function over events, or a middleware is none.
        """
        if not _is_one(self.function):
            raise ConfigurationError(
                f'The processor "{self.name}" must be an async function that takes the events and yields nothing: '
                f"async def {self.name}(events): ..."
            )
        for middleware in self.middleware:
            if isinstance(middleware, type):
                raise ConfigurationError(
                    f'The middleware {middleware.__name__} of processor "{self.name}" is a class; it must be an '
                    f"object: middleware=[{middleware.__name__}()]."
                )
            if not inspect.isasyncgenfunction(getattr(middleware, "handler", None)):
                raise ConfigurationError(
                    f'The middleware {middleware!r} of processor "{self.name}" needs a method `handler` that is an '
                    "async generator: async def handler(self, parent, **kwargs)."
                )
            if isinstance(middleware, DeadLetterMiddleware) and middleware.source is not self.stream:
                raise ConfigurationError(
                    f'The processor "{self.name}" of stream "{self.stream.name}" has a DeadLetterMiddleware of stream '
                    f'"{middleware.source.name}". Give it one of its own: DeadLetterMiddleware(source=...).'
                )

    @property
    def sinks(self) -> list[Stream[R]]:
        """Where its middleware sends dead letters."""
        return [middleware.sink for middleware in self.middleware if isinstance(middleware, DeadLetterMiddleware)]

    def __call__(self, events: Events[R]) -> Awaitable[Any]:
        return self.function(events)


def _is_one(function: Callable[..., Any]) -> bool:
    if inspect.isasyncgenfunction(function) or not inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind("the events")
    except TypeError:
        return False
    return True
