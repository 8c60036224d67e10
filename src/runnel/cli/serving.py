"""``runnel server``: the embedded server in the foreground."""

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from runnel.cli.terminal import notes, output, reporting
from runnel.server import AddressInUse, EmbeddedServer

__all__ = ["server"]

LOOK_INTERVAL = 0.1
"""Seconds between looks at whether the server has ended, or should."""


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
        # Not sigtimedwait: when Ctrl-Z and fg have interrupted it, CPython takes its time-out for a signal.
        while this.running and not signal.sigpending() & wanted:
            time.sleep(LOOK_INTERVAL)
        if signal.sigpending() & wanted:
            signal.sigwait(wanted)
        else:
            notes.print("The server has ended by itself.", style="red")
            raise typer.Exit(1)
    finally:
        this.stop()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, wanted)
