"""``runnel demo``."""

import typer

from runnel.cli.terminal import output, reporting

__all__ = ["demo"]


@reporting
def demo() -> None:
    """See the promise kept: real flights, two workers, one of them killed half-way.

    Starts a server of its own, and leaves nothing behind. Exit status 1 if anything was lost or out of order.
    """
    from runnel.demo import run as run_demo  # the command line starts faster without it

    raise typer.Exit(run_demo(output))
