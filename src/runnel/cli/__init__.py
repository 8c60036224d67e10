"""The command line. Each command is a thin layer over a function that a program can call as well."""

import sys
from importlib import metadata

import typer

from runnel.cli.demonstration import demo
from runnel.cli.developing import dev
from runnel.cli.processors import processor_app
from runnel.cli.running import worker
from runnel.cli.sending import send, sendmany
from runnel.cli.serving import server

__all__ = ["app", "demo", "dev", "main", "send", "sendmany", "server", "worker"]

app = typer.Typer(
    name="runnel",
    help="Strictly ordered event processing for Python on Redis Streams.",
    no_args_is_help=True,
    rich_markup_mode="markdown",  # joins the lines of a paragraph, which "rich" does not
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (worker, dev, send, sendmany, server, demo):
    app.command()(command)
app.add_typer(processor_app, name="processor", help="Look after a processor.")


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
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
