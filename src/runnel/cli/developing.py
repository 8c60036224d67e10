"""``runnel dev``: a worker for development, with a server if there is none, started again on changes."""

import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from runnel._worker import Worker
from runnel.app import App
from runnel.cli.running import PRIVATE, LogLevel, Processors, Target, colors
from runnel.cli.supervising import Changes, Supervisor
from runnel.cli.targets import load
from runnel.cli.terminal import notes, reporting, run
from runnel.errors import ConfigurationError, RedisUnavailable
from runnel.observability import configure_logging
from runnel.server import EmbeddedServer

__all__ = ["dev"]


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
    configure_logging(app.settings.log_level, "console", colors=colors())
    arguments = [word for word in (target,) if word]
    if processors:
        arguments += ["--processors", processors]
    if log_level:
        arguments += ["--log-level", log_level]
    started = _server_if_needed(app)
    if started is not None:
        arguments.append(PRIVATE)
    command = [sys.executable, "-m", "runnel", "worker", *arguments]
    try:
        raise typer.Exit(Supervisor([command], _changes() if reload else None).run())
    finally:
        if started is not None:
            started.stop()


def _changes() -> Changes | None:
    try:
        return Changes()
    except ConfigurationError as error:
        notes.print(f"Not reloading on changes: {error}", markup=False)
        return None


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
