"""The figures as a table for people, and as JSON."""

import os
import platform
import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from runnel.bench.rows import Absolute, Ratio, Series
from runnel.bench.suite import Outcome, Suite

__all__ = ["as_json", "as_table"]


def as_table(suite: Suite, rounds: int) -> Table:
    """One row each: ours, what is beside it, their ratio with its spread, and what it must reach."""
    table = Table(
        title=f"{suite.server}, Python {platform.python_version()}, {os.cpu_count()} cores; {rounds} rounds",
        title_justify="left",
        caption="Ratio: the median of the rounds' ratios (lowest to highest); of a series, that of its dearest step.",
        caption_justify="left",
    )
    for name, justify in (("row", "left"), ("what", "left"), ("Runnel", "right"), ("beside", "right")):
        table.add_column(name, justify=justify, no_wrap=name == "row")  # type: ignore[arg-type]
    table.add_column("ratio", justify="right")
    table.add_column("must be", justify="right")
    table.add_column("")
    for outcome in suite.outcomes:
        row = outcome.row
        met = {True: "[green]met[/]", False: "[red]missed[/]", None: "" if not outcome.absent else outcome.absent}
        table.add_row(
            row.name,
            row.what,
            _ours(outcome),
            _middle(outcome.beside),
            _spread(outcome),
            _bound(outcome),
            met[outcome.met],
        )
    return table


def as_json(suite: Suite, rounds: int) -> dict[str, Any]:
    """Everything that was measured, round by round."""
    return {
        "server": suite.server,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rounds": rounds,
        "rows": {
            outcome.row.name: {
                "what": outcome.row.what,
                "figure": outcome.row.figure,
                "ours": outcome.ours,
                "beside": outcome.beside,
                "values": outcome.values,
                "points": outcome.points,
                "bound": outcome.bound,
                "met": outcome.met,
                "absent": outcome.absent,
            }
            for outcome in suite.outcomes
        },
    }


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _middle(values: Sequence[float]) -> str:
    return _number(statistics.median(values)) if values else ""


def _ours(outcome: Outcome) -> str:
    if isinstance(outcome.row, Series):
        return "\n".join(f"{size:,}: {_middle(values)}" for size, values in outcome.points.items())
    return _middle(outcome.ours)


def _spread(outcome: Outcome) -> str:
    values = outcome.values
    if not values:
        return ""
    if isinstance(outcome.row, Absolute):
        return f"({_number(min(values))} to {_number(max(values))})"
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _bound(outcome: Outcome) -> str:
    if outcome.bound is None:
        return ""
    if isinstance(outcome.row, Absolute):
        return f"< {outcome.bound:g}"
    return f"{'≥' if isinstance(outcome.row, Ratio) and outcome.row.at_least else '≤'} {outcome.bound:g}"
