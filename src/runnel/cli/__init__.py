"""The command line. Each command is a thin layer over a function that a program can call as well."""

import sys
from importlib import metadata

import typer

from runnel.cli.checking import doctor
from runnel.cli.creating import init
from runnel.cli.dead_letters import dead_app
from runnel.cli.demonstration import demo
from runnel.cli.developing import dev
from runnel.cli.looking import lag, status, tail
from runnel.cli.measuring import bench
from runnel.cli.processors import processor_app
from runnel.cli.quarantines import quarantine_app
from runnel.cli.running import worker
from runnel.cli.sending import send, sendmany
from runnel.cli.serving import server
from runnel.cli.streams import stream_app
from runnel.cli.terminal import tolerate

__all__ = [
    "app",
    "bench",
    "demo",
    "dev",
    "doctor",
    "init",
    "lag",
    "main",
    "send",
    "sendmany",
    "server",
    "status",
    "tail",
    "worker",
]

app = typer.Typer(
    name="runnel",
    help="Strictly ordered event processing for Python on Redis Streams.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # joins the lines of a paragraph, which "rich" does not
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (init, worker, dev, send, sendmany, tail, status, lag, doctor, server, demo, bench):
    app.command()(command)
app.add_typer(stream_app, name="stream", help="Look after a stream.")
app.add_typer(processor_app, name="processor", help="Look after a processor.")
app.add_typer(quarantine_app, name="quarantine", help="Look after partitions that have failed.")
app.add_typer(dead_app, name="dead", help="Look after dead letters.")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"Runnel {metadata.version('runnel')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Strictly ordered event processing for Python on Redis Streams."""


def main() -> None:
    """The entry point. Ends the process with the status of the command."""
    tolerate()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
