"""Background tasks: at startup, periodic, or by the calendar."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from runnel._core.schedules import check_crontab, next_crontab, next_timer
from runnel.errors import ConfigurationError

__all__ = ["BackgroundTask", "Crontab", "Startup", "Timer"]


@dataclass(frozen=True, slots=True)
class BackgroundTask:
    """A function that a worker runs besides its processors.

    Attributes:
        name: of the function; names its ticks in Redis.
        function: takes nothing.
        on_leader: whether only the lead worker runs it.
    """

    name: str
    function: Callable[[], Awaitable[Any]]
    on_leader: bool

    @property
    def schedule(self) -> str:
        """When it runs, in words."""
        raise NotImplementedError

    def next_tick(self, now: float, phase: float) -> float | None:
        """When it is due next.

        Arguments:
            now: seconds since the epoch.
            phase: a time, in seconds since the epoch, at which a timer was due; 0 on the leader, so that all workers
                count the same ticks.

        Returns:
            The first time after ``now``; ``None`` if never.
        """
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Startup(BackgroundTask):
    """Runs once, when the worker starts or becomes the leader."""

    @property
    def schedule(self) -> str:
        """When it runs, in words."""
        return "at startup"

    def next_tick(self, now: float, phase: float) -> float | None:
        """Never."""
        return None


@dataclass(frozen=True, slots=True)
class Timer(BackgroundTask):
    """Runs every ``interval`` seconds."""

    interval: float

    def __post_init__(self) -> None:
        """Refuse an interval that is not positive.

        Raises:
            ConfigurationError: it is not.
        """
        if not isinstance(self.interval, int | float) or not self.interval > 0:
            raise ConfigurationError(
                f'The interval of timer "{self.name}" must be above 0, in seconds, not {self.interval!r}.'
            )

    @property
    def schedule(self) -> str:
        """When it runs, in words."""
        return f"every {self.interval:g} s"

    def next_tick(self, now: float, phase: float) -> float | None:
        """A whole number of intervals after ``phase``."""
        return next_timer(self.interval, now - phase) + phase


@dataclass(frozen=True, slots=True)
class Crontab(BackgroundTask):
    """Runs when ``spec`` matches the time in ``timezone``."""

    spec: str
    timezone: str

    def __post_init__(self) -> None:
        """Refuse a bad expression or zone.

        Raises:
            ConfigurationError: it is one.
        """
        check_crontab(self.spec, self.timezone)

    @property
    def schedule(self) -> str:
        """When it runs, in words."""
        return f"at {self.spec} {self.timezone}"

    def next_tick(self, now: float, phase: float) -> float | None:
        """The next match."""
        return next_crontab(self.spec, check_crontab(self.spec, self.timezone), now)
