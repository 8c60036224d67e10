"""``runnel worker``: one process, or several under a supervisor."""

import asyncio
import io
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from typing import Annotated

import typer

from runnel._redis.backlog import Backlog
from runnel._worker import Worker, tune_collector
from runnel._worker.burst import nothing_left
from runnel.admin import server_warnings
from runnel.app import App
from runnel.cli.supervising import REPORT, Changes, Supervisor
from runnel.cli.targets import RedisURL, load
from runnel.cli.terminal import loop_name, notes, number, reporting, run
from runnel.errors import ConfigurationError, TargetError
from runnel.instruments import Announcement, WorkerStopped
from runnel.observability import LogSubscriber, configure_logging
from runnel.settings import unknown_variables

__all__ = ["colors", "worker"]

Target = Annotated[str | None, typer.Argument(help="module:attribute of the app, such as example:app.")]
LogLevel = Annotated[str | None, typer.Option("-l", "--log-level", help="debug, info, warning or error.")]
LogFormat = Annotated[str | None, typer.Option("--log-format", help="console or json.")]
Processors = Annotated[
    str | None, typer.Option("--processors", help="Names, separated by commas. Default: all of the app.")
]
DEFAULT_HOST = "127.0.0.1"
ABORT_TIMEOUT = 2.0
"""Seconds after an abort for the event loop and the interpreter to end in good order."""

PRIVATE = "--private-server"
"""What `runnel dev` says to a worker when it has started the server itself."""


@dataclass(frozen=True, slots=True)
class Way:
    """How one process is to run.

    Attributes:
        names: of the processors; ``None`` for all.
        burst: end when nothing is left to process.
        private: the server is one for development, which need not be durable.
        grace_period: in place of the processors' own, in seconds.
        http: host and port of health and metrics.
        process: its number under a supervisor, beginning with 1; ``None`` without one.
        report_to: a socket of the supervisor.
    """

    names: list[str] | None
    burst: bool
    private: bool
    grace_period: float | None
    http: tuple[str, int] | None
    process: int | None
    report_to: int | None


@reporting
def worker(
    target: Target = None,
    processors: Processors = None,
    workers: Annotated[
        int, typer.Option("-p", "--workers", min=1, help="Processes. One that crashes is started again.")
    ] = 1,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve /metrics, /livez and /readyz; on loopback, if no host is given. With -p, each process takes "
            "the next port.",
        ),
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="Stop when there is nothing left to process.")] = False,
    grace_period: Annotated[
        float | None,
        typer.Option(help="Seconds that events in progress may take at a stop. Default: the processors' own."),
    ] = None,
    reload: Annotated[
        bool, typer.Option("--reload", help="For development: restart when a Python file changes.")
    ] = False,
    redis_url: RedisURL = None,
    process: Annotated[int | None, typer.Option("--process", hidden=True)] = None,
    report_to: Annotated[int | None, typer.Option(REPORT, hidden=True)] = None,
    private: Annotated[bool, typer.Option(PRIVATE, hidden=True)] = False,
) -> None:
    """Run an app's processors and background tasks until stopped.

    Ctrl-C or SIGTERM lets the events in progress finish; a second one does not wait for them. Exit status: 0 stopped,
    1 a processor halted, 2 the target cannot be imported, 3 no Redis, 4 misconfigured, 130 aborted.
    """
    app = load(target, App, "runnel worker", redis_url=redis_url)
    overrides = {"log_level": log_level, "log_format": log_format, "grace_period": grace_period}
    app.configure(**{name: value for name, value in overrides.items() if value is not None})
    names = None if processors is None else [name.strip() for name in processors.split(",") if name.strip()]
    if names == []:
        raise TargetError(f'--processors "{processors}" names no processor. The app has: {", ".join(app.processors)}.')
    address = None if http is None else _address(http)
    way = Way(names, burst, private, grace_period, address, process, report_to)
    settings = app.settings
    configure_logging(settings.log_level, settings.log_format, colors=colors(), process=process)
    if workers > 1 or reload:
        options = {
            "--processors": processors,
            "--log-level": log_level,
            "--log-format": log_format,
            "--grace-period": None if grace_period is None else str(grace_period),
            "--redis-url": redis_url,
        }
        words = [target] if target else []
        words += [word for name, value in options.items() if value is not None for word in (name, value)]
        words += ["--burst"] if burst else []
        raise typer.Exit(_supervise(app, way, words, workers, reload=reload))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what handlers print is seen at once, in a pipe too
    raise typer.Exit(run(_work(app, way)))


def colors() -> bool:
    """Whether the log may have colours."""
    return notes.is_terminal and not notes.no_color


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 65535:
        raise typer.BadParameter(
            f'"{text}" is no address. Give a port, or a host and a port: --http 9100, --http 0.0.0.0:9100.',
            param_hint="--http",
        )
    return host.strip("[]") or DEFAULT_HOST, int(port)


async def _work(app: App, way: Way) -> int:
    """Run one process."""
    subscriber = LogSubscriber(app.settings.log_format)
    app.instruments.subscribe(subscriber)
    this = Worker(app, way.names, grace_period=way.grace_period, measured=way.http is not None)
    if app.tracing is not None:
        from runnel.telemetry.otel import export

        export(app.name, this.name)
    health = None
    if way.http is not None:
        try:
            from runnel.telemetry.http import HealthServer
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"--http needs packages that are not installed ({error.name}): pip install 'runnel[http]'"
            ) from None
        health = HealthServer(this, *way.http)
    await this.prepare()
    if way.process is None:
        await _introduce(app, this, subscriber, private=way.private)
    if health is not None:
        health.start()
        subscriber.note("health and metrics are served", url=health.url)
    _heed_signals(this)
    if way.report_to is not None:
        _report(app, this, way.report_to)
    burst = asyncio.create_task(_burst(this)) if way.burst else None
    tune_collector()
    status = await this.run()
    if this.aborted:
        _end_soon(status)
    if health is not None:
        await health.stop()
    if burst is not None:
        burst.cancel()
        (left,) = await asyncio.gather(burst, return_exceptions=True)
        for words in _unprocessed(left) if status == 0 and isinstance(left, dict) else ():
            subscriber.warn(words)
            status = 1
    return status


async def _introduce(
    app: App, this: Worker, subscriber: LogSubscriber, *, workers: int = 1, private: bool = False
) -> None:
    """Say what is about to run, and what does not look right; once, however many processes there are."""
    if app.settings.log_format == "console":
        _banner(app, this, workers)
    for name, hint in unknown_variables().items():
        subscriber.warn(f"the variable {name} is no setting of Runnel.{hint}")
    for finding in () if private else await server_warnings(app):
        subscriber.warn(f"{finding.what} {finding.cure}")


def _heed_signals(this: Worker) -> None:
    """The first signal drains, the second aborts."""
    loop = asyncio.get_running_loop()
    signals: list[signal.Signals] = []

    def on_signal(received: signal.Signals) -> None:
        signals.append(received)
        if len(signals) == 1:
            this.stop(received.name)
        else:
            this.abort()

    for one in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(one, on_signal, one)


def _end_soon(status: int) -> None:
    """After an abort, do not let a function that swallows its cancellation, or blocks a thread, hold up the process."""

    def end() -> None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):  # it is closed, or there is none
                stream.flush()
        os._exit(status)

    timer = threading.Timer(ABORT_TIMEOUT, end)
    timer.daemon = True
    timer.start()


async def _burst(this: Worker) -> dict[str, Backlog]:
    """Stop the worker when nothing is left but what is parked. Returns that, by processor."""
    left = await nothing_left(this)
    this.stop("nothing is left to process")
    return left


def _unprocessed(left: Mapping[str, Backlog]) -> Iterator[str]:
    """What a burst could not process, in words."""
    for name, backlog in left.items():
        if backlog.quarantined:
            partitions = number(backlog.quarantined, "partition")
            yield f'"{name}" is quarantined in {partitions}: what is there was not processed'
        if backlog.paused:
            yield f'"{name}" is paused: {number(backlog.paused, "event")} not processed'


def _report(app: App, this: Worker, descriptor: int) -> None:
    """Tell the supervisor at the end what was done; and end if it is gone, so that it leaves no orphans."""
    line = socket.socket(fileno=descriptor)

    def at_the_end(announcement: Announcement) -> None:
        if isinstance(announcement, WorkerStopped):
            asyncio.get_running_loop().remove_reader(line)
            with line, suppress(ConnectionError):  # it may be gone
                line.sendall(json.dumps({"processed": announcement.processed}).encode())

    def gone() -> None:
        asyncio.get_running_loop().remove_reader(line)
        this.stop("the supervisor is gone")

    app.instruments.subscribe(at_the_end)
    asyncio.get_running_loop().add_reader(line, gone)


def _supervise(app: App, way: Way, words: list[str], workers: int, *, reload: bool) -> int:
    """Run several processes with the same words behind `runnel worker`; or one that is restarted on changes."""
    try:
        changes = Changes() if reload else None
    except ConfigurationError as error:
        raise ConfigurationError(f"--reload: {error}") from None
    this = Worker(app, way.names)
    run(this.prepare())  # what is wrong is said once, and not by each process
    run(_introduce(app, this, LogSubscriber(app.settings.log_format), workers=workers))
    commands = []
    for process in range(1, workers + 1):
        command = [sys.executable, "-m", "runnel", "worker", *words, "--process", str(process)]
        if way.http is not None:
            host, port = way.http
            command += ["--http", f"{host}:{port and port + process - 1}"]
        commands.append(command)
    return Supervisor(commands, changes, reports=True).run()


def _banner(app: App, this: Worker, workers: int = 1) -> None:
    lines = [
        f'Runnel {metadata.version("runnel")}   app "{app.name}"   {this.server} at {app.endpoint.safe_url}'
        f"   {loop_name()}{f'   {workers} processes' if workers > 1 else ''}",
    ]
    for processor in this.processors:
        stream = processor.stream
        retries = "1 retry" if processor.retries == 1 else f"{processor.retries} retries"
        tries = f"{retries}, then " if processor.retries else ""
        lines.append(
            f"  {processor.name}   {stream.name}, {stream.partition_count} partitions, "
            f"on failure: {tries}{processor.exception_policy.value}"
        )
    lines += [f"  {task.name}   {task.schedule}{', on the leader' if task.on_leader else ''}" for task in app.tasks]
    if not this.processors and not app.tasks:
        lines.append("  no processors and no background tasks: is their module imported? See autodiscover.")
    notes.print("\n".join(lines), markup=False)
