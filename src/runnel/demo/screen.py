"""What the demo shows: its steps and its progress while it runs, and the verdict."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from runnel.demo.flights import Flight
from runnel.demo.verdict import Verdict

__all__ = ["Screen", "show"]

MOST_LATE = 5
"""Aircraft that the result names."""


class Screen:
    """Steps as lines, and bars below them while flights are in the air; on anything but a terminal, lines only."""

    def __init__(self, console: Console, total: int) -> None:
        self._console = console
        self._began = time.monotonic()
        self._total = total
        self._quarters = 0
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(None),
            MofNCompleteColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._sent = self._progress.add_task("sent", total=total)
        self._processed = self._progress.add_task("processed", total=total)

    def step(self, text: str) -> None:
        """Say what has happened."""
        line = f"{time.monotonic() - self._began:5.1f} s  {text}"
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def update(self, sent: int, processed: int) -> None:
        """Say how far it is."""
        self._progress.update(self._sent, completed=sent)
        self._progress.update(self._processed, completed=processed)
        quarters = processed * 4 // self._total
        if self._progress.disable and self._quarters < quarters < 4:
            self._quarters = quarters
            self.step(f"{sent:,} sent, {processed:,} processed")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()


def show(console: Console, verdict: Verdict, flights: list[Flight]) -> None:
    """Print the verdict, and the result."""

    def say(line: str = "", style: str | None = None) -> None:
        console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)

    def row(name: str, number: float, rest: str = "", *, digits: int = 0) -> None:
        say(f"  {name:<12}{number:>9,.{digits}f}  {rest}".rstrip())

    say()
    say("By what the workers wrote down:")
    row("sent", verdict.sent, f"flights of {verdict.aircraft:,} aircraft")
    row("processed", verdict.processed)
    row(
        "repeated",
        verdict.repeated,
        "again after the kill, because they were not committed yet" if verdict.repeated and not verdict.faults else "",
    )
    row("lost", verdict.lost)
    row("order kept", verdict.in_order, f"of {verdict.aircraft:,} aircraft")
    taken = verdict.take_over
    if taken is not None and taken.after:
        row(
            "take-over",
            taken.after[0],
            f"s from the kill until the first of {taken.orphaned} orphaned partitions went on, "
            f"{taken.after[-1]:.2f} s until the last",
            digits=2,
        )
    say()
    total = sum(verdict.carried.values())
    say(f"Arrival delay carried into the next departure of the same day: {total:,} minutes. Most of it by")
    carriers = {flight.tail: flight.carrier for flight in flights}
    for tail, minutes in sorted(verdict.carried.items(), key=lambda item: (-item[1], item[0]))[:MOST_LATE]:
        say(f"  {tail:<7} {carriers[tail]:<3}{minutes:>6,} min")
    say(
        f"Computed one flight after the other, without Runnel: {verdict.carried_sequentially:,} minutes, "
        f"the same for {verdict.same:,} of {verdict.sent:,} flights."
    )
    say(f"Computed in a shuffled order, which is wrong: {verdict.carried_shuffled:,} minutes.")
    say()
    for fault in verdict.faults:
        say(f"  {fault}", "red")
    if verdict.exit_status == 0:
        say("Passed: nothing lost, nothing out of order, nothing different.", "bold green")
    else:
        say("FAILED.", "bold red")
