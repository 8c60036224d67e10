"""Processes of a measurement: each runs one function of ``ours`` or ``bare`` and prints its figures as JSON."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from runnel.bench.place import Place
from runnel.errors import BenchError

__all__ = ["Children", "measure"]

LIMIT = 600.0
"""Seconds. Above anything that is measured; what takes longer hangs."""


def _command(function: str, place: Place, parameters: dict[str, Any]) -> list[str]:
    task = {"function": function, "place": asdict(place), "parameters": parameters}
    return [sys.executable, "-m", "runnel.bench.side", json.dumps(task)]


def measure(function: str, place: Place, parameters: dict[str, Any]) -> dict[str, float]:
    """Run a function in a process, and return its figures.

    The process and its children are in a group of their own: they do not hear a Ctrl-C, and end before this does,
    whatever happens, so that nobody writes any more when the keys are removed.

    Raises:
        BenchError: it failed.
    """
    process = subprocess.Popen(
        _command(function, place, parameters), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        raise BenchError(f"The measurement {function} {parameters} did not end within {LIMIT:g} s.") from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode != 0:
        raise BenchError(f"The measurement {function} {parameters} failed:\n{err.decode(errors='replace').strip()}")
    figures: dict[str, float] = json.loads(out)
    return figures


class Children:
    """Processes that work for a measurement while it lasts; killed at its end."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, function: str, place: Place, **parameters: Any) -> None:
        """Start one."""
        self._processes.append(subprocess.Popen(_command(function, place, parameters), stdout=subprocess.DEVNULL))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
