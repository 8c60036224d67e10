"""Commands that run something: ``worker``, ``dev`` and ``server``."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from runnel._worker import Worker, tune_collector
from runnel.admin import server_warnings
from runnel.app import App
from runnel.cli.targets import RedisURL, load
from runnel.cli.terminal import loop_name, notes, output, reporting, run
from runnel.errors import RedisUnavailable, TargetError
from runnel.observability import LogSubscriber, configure_logging
from runnel.server import AddressInUse, EmbeddedServer
from runnel.settings import unknown_variables

__all__ = ["dev", "server", "worker"]

Target = Annotated[str | None, typer.Argument(help="module:attribute of the app, such as example:app.")]
LogLevel = Annotated[str | None, typer.Option("-l", "--log-level", help="debug, info, warning or error.")]
LogFormat = Annotated[str | None, typer.Option("--log-format", help="console or json.")]
Processors = Annotated[
    str | None, typer.Option("--processors", help="Names, separated by commas. Default: all of the app.")
]


@reporting
def worker(
    target: Target = None,
    processors: Processors = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
    redis_url: RedisURL = None,
) -> None:
    """Run an app's processors and background tasks until stopped.

    Ctrl-C or SIGTERM lets the events in progress finish; a second one does not wait for them. Exit status: 0 stopped,
    1 a processor halted, 2 the target cannot be imported, 3 no Redis, 4 misconfigured, 130 aborted.
    """
    app = load(target, App, "runnel worker", redis_url=redis_url)
    overrides = {"log_level": log_level, "log_format": log_format}
    app.configure(**{name: value for name, value in overrides.items() if value is not None})
    names = None if processors is None else [name.strip() for name in processors.split(",") if name.strip()]
    if names == []:
        raise TargetError(f'--processors "{processors}" names no processor. The app has: {", ".join(app.processors)}.')
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what handlers print is seen at once, in a pipe too
    raise typer.Exit(run(_work(app, names)))


async def _work(app: App, names: list[str] | None) -> int:
    settings = app.settings
    configure_logging(settings.log_level, settings.log_format, colors=notes.is_terminal and not notes.no_color)
    subscriber = LogSubscriber(settings.log_format)
    app.instruments.subscribe(subscriber)
    this = Worker(app, names)
    await this.prepare()
    if settings.log_format == "console":
        _banner(app, this)
    for name, hint in unknown_variables().items():
        subscriber.warn(f"the variable {name} is no setting of Runnel.{hint}")
    for finding in await server_warnings(app):
        subscriber.warn(f"{finding.what} {finding.cure}")
    loop = asyncio.get_running_loop()
    signals: list[signal.Signals] = []

    def on_signal(number: signal.Signals) -> None:
        signals.append(number)
        if len(signals) == 1:
            this.stop(number.name)
        else:
            this.abort()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    tune_collector()
    return await this.run()


def _banner(app: App, this: Worker) -> None:
    lines = [
        f'Runnel {metadata.version("runnel")}   app "{app.name}"   {this.server} at {app.endpoint.safe_url}'
        f"   {loop_name()}",
    ]
    for processor in this.processors:
        stream = processor.stream
        lines.append(
            f"  {processor.name}   {stream.name}, {stream.partition_count} partitions, "
            f"on failure: {processor.exception_policy.value}"
        )
    lines += [f"  {task.name}   {task.schedule}{', on the leader' if task.on_leader else ''}" for task in app.tasks]
    if not this.processors and not app.tasks:
        lines.append("  no processors and no background tasks: is their module imported? See autodiscover.")
    notes.print("\n".join(lines), markup=False)


@reporting
def server(
    port: Annotated[int, typer.Option(help="TCP port on loopback; 0 for a free one.", min=0, max=65535)] = 6379,
    host: Annotated[str, typer.Option(help="A loopback address.")] = "127.0.0.1",
    unix: Annotated[Path | None, typer.Option(help="Listen on this socket instead of a port.")] = None,
    data: Annotated[Path | None, typer.Option(help="Keep the data in this directory, in an append-only file.")] = None,
) -> None:
    """Run a private Valkey or Redis in the foreground, for development.

    Without --data, what is in it is gone when it ends.
    """
    # The port is None where there is a socket, or where any free one will do.
    this = EmbeddedServer(
        host=host, port=None if unix else port or None, unix_socket=unix, data_dir=data, append_only=data is not None
    )
    try:
        this.start()
    except AddressInUse:
        cure = "Choose another one" if unix else f"Choose another one, such as `runnel server --port {port + 1}`"
        raise AddressInUse(
            f"{unix or f'Port {port} of {host}'} is already in use. {cure}, or go on with the server that is there."
        ) from None
    wanted = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)  # not before the start: the server would inherit it
    try:
        kept = f"data in {data}" if data else "data in memory only"
        notes.print(f"{this.version}, {kept}. Ctrl-C ends it.", markup=False)
        output.print(this.url, markup=False)
        while this.running and signal.sigtimedwait(wanted, 0.5) is None:
            pass
        if not this.running:
            notes.print("The server has ended by itself.", style="red")
            raise typer.Exit(1)
    finally:
        this.stop()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)


@reporting
def dev(
    target: Target = None,
    processors: Processors = None,
    log_level: LogLevel = None,
    reload: Annotated[bool, typer.Option(help="Restart the worker when a Python file here changes.")] = True,
) -> None:
    """Develop: run a worker, with a server if none answers on the app's loopback address, restarted on changes.

    The server lives as long as this command, with its data in memory, so `runnel send` in a second terminal just works.
    """
    app = load(target, App, "runnel dev")
    arguments = [word for word in (target,) if word]
    if processors:
        arguments += ["--processors", processors]
    if log_level:
        arguments += ["--log-level", log_level]
    command = [sys.executable, "-m", "runnel", "worker", *arguments]
    started = _server_if_needed(app)
    try:
        raise typer.Exit(_supervise(command, reload=reload))
    finally:
        if started is not None:
            started.stop()


def _server_if_needed(app: App) -> EmbeddedServer | None:
    parts = urlsplit(app.settings.redis_url)

    async def answers() -> bool:
        try:
            await Worker(app, []).prepare()
        except RedisUnavailable as error:
            nobody_there = "refused" in str(error) or "No such file" in str(error)
            if nobody_there and parts.scheme != "rediss":  # ours speaks no TLS
                return False
            raise
        return True

    if run(answers()):
        return None
    if parts.scheme == "unix":
        started = EmbeddedServer(unix_socket=Path(parts.path))
    else:
        started = EmbeddedServer(host=parts.hostname or "127.0.0.1", port=parts.port or 6379)
    started.start()
    notes.print(f"Started {started.version} at {started.url}, data in memory only.", markup=False)
    return started


def _supervise(command: list[str], *, reload: bool) -> int:
    """Run the worker; again after every change. Returns its exit status."""
    stopping = False
    process: subprocess.Popen[bytes] | None = None

    def on_signal(number: int, _: object) -> None:
        nonlocal stopping
        stopping = True
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)

    # In a group of its own, so that a Ctrl-C reaches the worker once, from us.
    signal.signal(signal.SIGINT, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    changes = _changes() if reload else None
    while True:
        process = subprocess.Popen(command, process_group=0)
        if stopping:
            process.send_signal(signal.SIGTERM)
        if changes is None:
            return process.wait()
        reported = False
        while not changes.poll():
            if process.poll() is not None:
                if stopping:
                    return process.returncode
                if not reported:
                    reported = True
                    notes.print(f"The worker ended with status {process.returncode}. Waiting for a change.")
            if stopping and process.poll() is not None:
                return process.returncode
        if stopping:
            return process.wait()
        notes.print("A file has changed: restarting the worker.")
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait()


class _Changes:
    """Tells of changed Python files below the working directory."""

    def __init__(self) -> None:
        import watchfiles

        self._watch = watchfiles.watch(
            os.getcwd(),
            watch_filter=watchfiles.PythonFilter(),
            raise_interrupt=False,
            rust_timeout=200,
            yield_on_timeout=True,
        )

    def poll(self) -> bool:
        """Wait a fifth of a second for a change."""
        return bool(next(self._watch, set()))


def _changes() -> _Changes | None:
    try:
        return _Changes()
    except ImportError:
        notes.print("Not reloading on changes: that needs `pip install 'runnel[reload]'`.", markup=False)
        return None
