"""The app: where streams, processors and background tasks are declared.

Nothing is connected when an app is made; a connection is opened when something is sent, or by a worker.
"""

import asyncio
import importlib
import inspect
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, overload

from runnel._redis.link import Endpoint
from runnel._redis.producer import Limits, Producer
from runnel._redis.topology import endpoint_for
from runnel.constants import ExceptionPolicy
from runnel.errors import ConfigurationError
from runnel.events import Events
from runnel.instruments import Announcement, Instruments
from runnel.interfaces import Compressor, Middleware, Serializer
from runnel.outbox import Outbox
from runnel.processors import Processor
from runnel.records import Record
from runnel.settings import Settings, check_names, load_settings
from runnel.streams import Stream, StreamOptions
from runnel.tasks import BackgroundTask, Crontab, Startup, Timer

if TYPE_CHECKING:
    from runnel.tracing import Tracing

__all__ = ["App"]

R = TypeVar("R", bound=Record)
Function = TypeVar("Function", bound=Callable[[], Awaitable[Any]])


class App:
    """A project: its name in Redis, its settings, its streams, processors and background tasks.

    Example:
        ``app = App(name="myapp", redis_url="redis://127.0.0.1")``

    Arguments:
        name: part of every key in Redis.
        **settings: any of :class:`runnel.settings.Settings`; what is not given comes from ``RUNNEL_*`` variables.

    Attributes:
        settings: the settings in force.
        streams: by name.
        processors: by name.
        tasks: the background tasks, in the order of their declaration.
        instruments: announces what happens.
        tracing: makes spans of what is sent and processed, if the setting ``otel`` is on; else ``None``.

    Raises:
        UnknownSetting: a keyword is no setting.
        ConfigurationError: a setting has a value that does not fit, or needs a package that is not installed.
    """

    def __init__(self, name: str, **settings: Any) -> None:
        self.settings: Settings = load_settings({"name": name, **settings})
        self.streams: dict[str, Stream[Any]] = {}
        self.processors: dict[str, Processor[Any]] = {}
        self.tasks: list[BackgroundTask] = []
        self.instruments = Instruments()
        self._endpoint: tuple[str, Endpoint] | None = None
        self.tracing = _tracing(self.settings)
        self._outboxes: dict[asyncio.AbstractEventLoop, Outbox] = {}

    @property
    def name(self) -> str:
        """The name of the app."""
        return self.settings.name

    @property
    def endpoint(self) -> Endpoint:
        """Where Redis is.

        Raises:
            ConfigurationError: ``redis_url`` is not a URL that we understand.
        """
        if self._endpoint is None or self._endpoint[0] != self.settings.redis_url:
            self._endpoint = self.settings.redis_url, endpoint_for(self.settings.redis_url)
        return self._endpoint[1]

    def configure(self, **settings: Any) -> None:
        """Override settings, as command-line options do. Streams and processors keep what they were declared with, and
        connections that are open go on as they are.

        Arguments:
            **settings: any of :class:`runnel.settings.Settings` but ``name``, which is in the keys of what there is.

        Example:
            ``app.configure(log_level="debug")``

        Raises:
            UnknownSetting: a keyword is no setting.
            ConfigurationError: a value does not fit.
        """
        given = {field: getattr(self.settings, field) for field in self.settings.model_fields_set}
        self.settings = load_settings({**given, **settings})
        self.tracing = _tracing(self.settings)

    # Declarations

    def stream(
        self,
        name: str,
        record: type[R],
        partition_by: str | Callable[[R], Any],
        *,
        partition_count: int | None = None,
        partition_size: int | None = None,
        hasher: Callable[[Any], int] | None = None,
        serializer: Serializer | None = None,
        compressor: Compressor | None = None,
        on_full: str | None = None,
        durability: str | None = None,
    ) -> Stream[R]:
        """Declare a stream. What is not given comes from the settings of the same names.

        Arguments:
            name: unique within the app.
            record: the type of its records.
            partition_by: the field whose value is the key, or a callable from record to key. Events with equal keys are
                processed in the order in which they were sent.
            partition_count: number of partitions when the stream is first used; `runnel stream migrate` changes it.
            partition_size: entries that a partition keeps, roughly.
            hasher: from a key to a number.
            serializer: of structured records.
            compressor: of structured records.
            on_full: ``wait``, ``raise`` or ``trim``.
            durability: ``primary``, ``replica`` or ``disk``, see :class:`runnel.settings.Settings`.

        Returns:
            The stream: send to it, and give it to :meth:`processor`.

        Example:
            ``orders = app.stream("orders", record=Order, partition_by="order_id")``

        Raises:
            ConfigurationError: the name is taken, or something does not fit.
        """
        if name in self.streams:
            raise ConfigurationError(
                f'The app "{self.name}" has two streams named "{name}". Give one of them another name.'
            )
        given = {
            "partition_count": partition_count,
            "partition_size": partition_size,
            "hasher": hasher,
            "serializer": serializer,
            "compressor": compressor,
            "on_full": on_full,
            "durability": durability,
        }
        chosen = self._chosen(f'stream "{name}"', given)
        options = StreamOptions(
            chosen.partition_count,
            chosen.hasher,
            chosen.serializer,
            chosen.compressor,
            Limits(chosen.partition_size, chosen.on_full, chosen.on_full_timeout, chosen.send_timeout),
            chosen.durability,
        )
        return self._add_stream(name, record, partition_by, options)

    def processor(
        self,
        stream: Stream[R],
        *,
        name: str | None = None,
        exception_policy: ExceptionPolicy | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        backoff_max: float | None = None,
        middleware: Sequence[Middleware] = (),
        prefetch_count: int | None = None,
        commit: str | None = None,
        grace_period: float | None = None,
        stall_timeout: float | None = None,
    ) -> Callable[[Callable[[Events[R]], Awaitable[Any]]], Processor[R]]:
        """Declare a processor: an async function over the events of a partition, run once per partition.

        Arguments:
            stream: what to process.
            name: unique within the app; positions are kept under it. Default: the function's name.
            exception_policy: what becomes of a partition when the function raises.
            retries: how often a failing event or batch is tried again before that, while its partition waits.
            backoff: seconds before the first of these attempts, at most. Doubles with each one, with jitter.
            backoff_max: the longest wait before an attempt, in seconds.
            middleware: runs around the events, the first one nearest to the source.
            prefetch_count: events read at a time per partition.
            commit: ``auto`` or ``each``, see :class:`runnel.settings.Settings`.
            grace_period: seconds that the event in progress may take when the partition is handed over.
            stall_timeout: seconds that a partition with events may make no progress before the log and the metrics say
                so.

        What is not given comes from the settings of the same names.

        Returns:
            What takes the function, and makes a :class:`runnel.processors.Processor` of it.

        Example:
            ::

                @app.processor(orders)
                async def printer(events):
                    async for order in events.records():
                        print(order.amount)

        Raises:
            ConfigurationError: the name is taken, or something does not fit.
        """
        if not isinstance(stream, Stream):
            raise ConfigurationError(f"@app.processor needs a stream, such as one made by app.stream; got {stream!r}.")
        if not isinstance(middleware, Iterable):
            raise ConfigurationError(f"@app.processor takes a list of middleware; write middleware=[{middleware!r}].")

        def decorate(function: Callable[[Events[R]], Awaitable[Any]]) -> Processor[R]:
            if isinstance(function, Processor):  # of another stream as well: one decorator above the other
                function = function.function
            chosen_name: str = name or _name_of(function, "processor")
            if chosen_name in self.processors:
                raise ConfigurationError(
                    f'The app "{self.name}" has two processors named "{chosen_name}". Positions are kept under that '
                    'name, so rename one of them, or use @app.processor(..., name="...").'
                )
            given = {
                "exception_policy": exception_policy,
                "retries": retries,
                "backoff": backoff,
                "backoff_max": backoff_max,
                "prefetch_count": prefetch_count,
                "commit": commit,
                "grace_period": grace_period,
                "stall_timeout": stall_timeout,
            }
            chosen = self._chosen(f'processor "{chosen_name}"', given)
            processor = Processor(
                chosen_name,
                stream,
                function,
                chosen.exception_policy,
                chosen.retries,
                chosen.backoff,
                chosen.backoff_max,
                tuple(middleware),
                chosen.prefetch_count,
                chosen.commit,
                chosen.grace_period,
                chosen.stall_timeout,
            )
            self.processors[chosen_name] = processor
            return processor

        return decorate

    @overload
    def task(self, function: Function) -> Function: ...
    @overload
    def task(self, *, on_leader: bool = False) -> Callable[[Function], Function]: ...
    def task(
        self, function: Function | None = None, *, on_leader: bool = False
    ) -> Function | Callable[[Function], Function]:
        """Declare a function that runs when a worker starts.

        Arguments:
            function: an async function without arguments.
            on_leader: run it on the lead worker only. It runs when a worker becomes the leader, and is cancelled when
                it ceases to be.

        Example:
            ``@app.task`` or ``@app.task(on_leader=True)``

        Raises:
            ConfigurationError: it is no async function, or its name is taken.
        """

        def decorate(function: Function) -> Function:
            self._add_task(Startup(_name_of(function, "background task"), function, on_leader))
            return function

        return decorate if function is None else decorate(function)

    def timer(self, *, interval: float, on_leader: bool = False) -> Callable[[Function], Function]:
        """Declare a function that runs periodically.

        Arguments:
            interval: seconds between two runs. Runs do not overlap: one that takes longer skips ticks.
            on_leader: run it on the lead worker only; each tick once, also while leaders change.

        Example:
            ``@app.timer(interval=10)``

        Raises:
            ConfigurationError: the interval is not above 0, it is no async function, or its name is taken.
        """

        def decorate(function: Function) -> Function:
            self._add_task(Timer(_name_of(function, "background task"), function, on_leader, interval))
            return function

        return decorate

    def crontab(
        self, spec: str, *, timezone: str | None = None, on_leader: bool = False
    ) -> Callable[[Function], Function]:
        """Declare a function that runs at times of the calendar.

        Arguments:
            spec: minute, hour, day of month, month, day of week, as in ``45 17 * * *``; with a sixth field in front,
                that is the second.
            timezone: IANA name. Default: the setting ``timezone``, which is UTC.
            on_leader: run it on the lead worker only; each tick once, also while leaders change.

        Example:
            ``@app.crontab("45 17 * * *", timezone="Europe/Berlin")``

        Raises:
            ConfigurationError: a bad expression or zone, it is no async function, or its name is taken.
        """

        if not isinstance(spec, str):
            raise ConfigurationError(f'@app.crontab needs an expression, such as "45 17 * * *"; got {spec!r}.')

        def decorate(function: Function) -> Function:
            zone = self.settings.timezone if timezone is None else str(timezone)
            self._add_task(Crontab(_name_of(function, "background task"), function, on_leader, spec, zone))
            return function

        return decorate

    def discover(self) -> list[str]:
        """Import the modules that the setting ``autodiscover`` names, relative to the working directory.

        Returns:
            The names of the modules.

        Raises:
            ConfigurationError: the pattern matches nothing.
        """
        pattern = self.settings.autodiscover
        if pattern is None:
            return []
        here = Path.cwd()
        try:
            paths = sorted(path for path in here.glob(pattern) if path.suffix == ".py")
        except (ValueError, NotImplementedError) as error:
            raise ConfigurationError(f'autodiscover="{pattern}" is not a glob pattern: {error}.') from error
        if not paths:
            raise ConfigurationError(
                f'autodiscover="{pattern}" matches no Python file in {here}. The pattern is relative to the directory '
                'in which the worker starts; for example "myproj/**/streams.py".'
            )
        if str(here) not in sys.path:
            sys.path.insert(0, str(here))
        modules = []
        for path in paths:
            parts = path.relative_to(here).with_suffix("").parts
            modules.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        for module in modules:
            importlib.import_module(module)
        return modules

    # Sending

    @property
    def traced(self) -> bool:
        """Whether sends go through :meth:`send_traced`."""
        return self.tracing is not None

    def producer(self, stream: Stream[Any]) -> Producer:
        """What :meth:`Stream.send` of ``stream`` sends through, on this event loop."""
        return self._outbox().producer(stream, b"" if self.traced else stream.codec.field)

    async def send_traced(self, stream: Stream[Any], items: Sequence[tuple[int, Sequence[bytes]]]) -> list[str]:
        """Append ``items`` to ``stream``: partitions and entries, all their fields given, that carry the context of a
        span."""
        assert self.tracing is not None
        producer = self.producer(stream)

        def append(items: Sequence[tuple[int, Sequence[bytes]]]) -> Awaitable[Sequence[str]]:
            return producer.send([partition for partition, _ in items], [entry for _, entry in items])

        return list(await self.tracing.send(stream.name, items, append))

    async def send_once(
        self, stream: Stream[Any], route: Callable[[int], int], entry: Sequence[bytes], *, origin: str
    ) -> None:
        """Append an entry once; arguments as :meth:`runnel.streams.Stream.send_once`, which calls this."""
        partition = route(stream.partition_count)
        with nullcontext() if self.tracing is None else self.tracing.sending(stream.name, [partition]):
            await self._outbox().send_once(stream, route, entry, origin)

    async def aclose(self) -> None:
        """Send what is still to be sent, and close the connections that sending has opened on this event loop.

        Who sends afterwards connects anew.
        """
        outbox = self._outboxes.pop(asyncio.get_running_loop(), None)
        if outbox is not None:
            await outbox.close()

    @asynccontextmanager
    async def for_once(self) -> AsyncIterator[None]:
        """Close at the end what sending has opened meanwhile, unless this event loop was used for sending before."""
        close = asyncio.get_running_loop() not in self._outboxes
        try:
            yield
        except asyncio.CancelledError:
            close = False  # it would wait for what is under way; it is forgotten when its event loop is closed
            raise
        finally:
            if close:
                await self.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # Inside

    def _outbox(self) -> Outbox:
        loop = asyncio.get_running_loop()
        outbox = self._outboxes.get(loop)
        if outbox is None:
            for other in [*self._outboxes]:  # a copy: each thread may have an event loop
                if other.is_closed():
                    self._outboxes.pop(other, None)
            outbox = self._outboxes[loop] = Outbox(self.endpoint, self.instruments)
        return outbox

    def _chosen(self, what: str, given: dict[str, Any]) -> Settings:
        """The settings with what was given for one stream or processor."""
        overrides = {name: value for name, value in given.items() if value is not None}
        check_names(overrides)
        ours = {field: getattr(self.settings, field) for field in self.settings.model_fields_set}
        try:
            return load_settings({**ours, **overrides})
        except ConfigurationError as error:
            raise type(error)(f"In the declaration of {what}: {error}") from None

    def _add_stream(
        self,
        name: str,
        record: type[R],
        partition_by: str | Callable[[R], Any],
        options: StreamOptions,
        *,
        sibling: bool = False,
    ) -> Stream[R]:
        stream = Stream(self.name, name, record, partition_by, options, self, sibling=sibling)
        self.streams[name] = stream
        return stream

    def sibling(self, stream: Stream[R], name: str) -> Stream[R]:
        """The stream ``name`` with the properties of ``stream``; declared if it is not yet."""
        if name in self.streams:
            return self.streams[name]
        return self._add_stream(name, stream.record, stream.partition_by, stream.options, sibling=True)

    def announce(self, announcement: Announcement) -> None:
        """Tell the subscribers of the app's instruments of ``announcement``."""
        self.instruments.announce(announcement)

    def _add_task(self, task: BackgroundTask) -> None:
        if not inspect.iscoroutinefunction(task.function) or not _takes_nothing(task.function):
            raise ConfigurationError(f'The background task "{task.name}" must be an async function without arguments.')
        if any(other.name == task.name for other in self.tasks):
            raise ConfigurationError(
                f'The app "{self.name}" has two background tasks named "{task.name}". Rename one of them.'
            )
        self.tasks.append(task)


def _name_of(function: Callable[..., Any], what: str) -> str:
    """What a function is called.

    Raises:
        ConfigurationError: it is no function, or one that has no name, such as a ``functools.partial``.
    """
    name: str | None = getattr(function, "__name__", None)
    if name is None:
        raise ConfigurationError(f"A {what} must be an async function with a name (async def ...), not {function!r}.")
    return name


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    return True


def _tracing(settings: Settings) -> "Tracing | None":
    if not settings.otel:
        return None
    try:
        from runnel.tracing import Tracing
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The setting otel needs packages that are not installed ({error.name}): pip install 'runnel[otel]'"
        ) from None
    return Tracing(settings.redis_url)
