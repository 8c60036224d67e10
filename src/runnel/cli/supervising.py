"""Runs commands as child processes until it is told to stop: for ``runnel dev``, ``--reload`` and ``--workers``.

A child that crashed is started again, with back-off. One that has ended on purpose is not: what halts a processor has
to be mended by people, and so has a program that does not fit together.
"""

import json
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import Enum
from types import FrameType
from typing import Any

import structlog

from runnel._core.backoff import delays
from runnel.errors import ConfigurationError

__all__ = ["REPORT", "Changes", "Ending", "Supervisor", "judge"]

REPORT = "--report-to"
"""The option that tells a child which file descriptor to report to. It also ends when nobody listens there any more."""

FIRST_DELAY = 0.5
MOST_DELAY = 30.0
"""Seconds before a crashed child is started again: soon, but not in a loop that fills the log."""

STEADY = 60.0
"""Seconds. A child that ran for so long before it crashed begins with the shortest delay again."""

LOOK = 0.1
"""Seconds between two looks at the children."""


class Ending(Enum):
    """What the end of a child means."""

    FINISHED = "finished"
    CRASHED = "crashed"
    STOPPED_ALL = "stopped all"


def judge(status: int) -> Ending:
    """What to make of the exit status of a child that nobody has told to stop.

    0 and 130: it was stopped by a signal of its own, or had nothing left to do. 1, 2 and 4: a processor has halted, or
    the program or its settings are wrong; each of the others would end in the same way. 3: Redis was away when it
    started; it was there when we did, so this passes. Anything else, a signal above all, is a crash.
    """
    if status in (0, 130):
        return Ending.FINISHED
    return Ending.STOPPED_ALL if status in (1, 2, 4) else Ending.CRASHED


class Child:
    """One child process, in all its lives.

    Attributes:
        status: the exit status of the last one; ``None`` while it runs.
        starts: how often it was started.
        restart_at: monotonic time of its next start, if that is due.
    """

    def __init__(self, command: Sequence[str], *, reports: bool) -> None:
        self._command = command
        self._reports = reports
        self._report: socket.socket | None = None
        self._waits: Iterator[float] = iter(())
        self._started_at = 0.0
        self._process: subprocess.Popen[bytes]
        self.processed = 0
        self.status: int | None = None
        self.starts = 0
        self.restart_at: float | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def start(self) -> None:
        """Start it, in a group of its own, so that a Ctrl-C reaches it once: from us."""
        command = [*self._command]
        if self._reports:
            self._report, theirs = socket.socketpair()
            command += [REPORT, str(theirs.fileno())]
            self._process = subprocess.Popen(command, process_group=0, pass_fds=(theirs.fileno(),))
            theirs.close()
        else:
            self._process = subprocess.Popen(command, process_group=0)
        self.starts += 1
        self.status, self.restart_at, self._started_at = None, None, time.monotonic()

    def look(self) -> bool:
        """Whether it has ended since the last look."""
        if self.status is not None or (status := self._process.poll()) is None:
            return False
        self.status = status
        if self._report is not None:
            with self._report:
                self._report.setblocking(False)
                with suppress(OSError, ValueError):  # it was killed
                    self.processed += json.loads(self._report.recv(4096))["processed"]
        return True

    def stop(self) -> None:
        """Tell it to stop; the second time, not to wait."""
        self.restart_at = None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def delay(self) -> float:
        """Seconds until it should be started again."""
        now = time.monotonic()
        if self.starts == 1 or now - self._started_at > STEADY:
            self._waits = delays(FIRST_DELAY, MOST_DELAY, random.random)
        seconds = next(self._waits)
        self.restart_at = now + seconds
        return seconds


class Changes:
    """Tells of changed Python files below the working directory."""

    def __init__(self) -> None:
        """Raises:
        ConfigurationError: the package that watches files is not installed.
        """
        try:
            import watchfiles
        except ImportError:
            raise ConfigurationError("that needs `pip install 'runnel[reload]'`.") from None
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


class Supervisor:
    """Runs children until all have ended."""

    def __init__(self, commands: Sequence[Sequence[str]], changes: Changes | None, *, reports: bool = False) -> None:
        """Arguments:
        commands: of the children.
        changes: restart all of them on a change, and after a failure wait for one; ``None`` to restart what crashes.
        reports: the children take the option :data:`REPORT`; sum up at the end.
        """
        self._children = [Child(command, reports=reports) for command in commands]
        self._changes = changes
        self._reports = reports
        self._log = structlog.get_logger("runnel")
        self._stopping = False
        self._verdict: int | None = None

    def run(self) -> int:
        """Start all; look after them; sum up. Returns the exit status.

        1. Start.
        2. Look who has ended, and judge that.
        3. Start again who crashed, when it is time.
        4. All again, when a file has changed.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)
        began = time.monotonic()
        for child in self._children:
            child.start()  # 1
        while self._pending():
            for child in self._children:
                if child.look():
                    self._ended(child)  # 2
            now = time.monotonic()
            for child in self._children:
                if child.restart_at is not None and child.restart_at <= now:
                    child.start()  # 3
            if self._changes is None:
                time.sleep(LOOK)
            elif self._changes.poll() and not self._stopping:
                self._start_over()  # 4
        if self._reports:
            self._log.info(
                "all processes have ended",
                processes=len(self._children),
                processed=sum(child.processed for child in self._children),
                restarts=sum(child.starts - 1 for child in self._children),
                seconds=round(time.monotonic() - began, 1),
            )
        if self._verdict is not None:
            return self._verdict
        # A child that is just starting or exiting has no handler for our signal, and dies of it: that is a stop, too.
        statuses = [child.status for child in self._children if child.status and child.status != -signal.SIGTERM]
        return max((128 - status if status < 0 else status for status in statuses), default=0)  # as a shell has it

    def _pending(self) -> bool:
        """Whether anything runs or will."""
        waits = self._changes is not None and not self._stopping
        return waits or any(child.status is None or child.restart_at is not None for child in self._children)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        for child in self._children:
            child.stop()

    def _ended(self, child: Child) -> None:
        assert child.status is not None
        if self._stopping:
            return
        if self._changes is not None:
            self._log.warning(f"The worker ended with status {child.status}. Waiting for a change.")
            return
        facts: dict[str, Any] = {"pid": child.pid, "status": child.status}
        match judge(child.status):
            case Ending.CRASHED:
                self._log.error("process crashed; starting it again", **facts, seconds=round(child.delay(), 2))
            case Ending.STOPPED_ALL:
                self._verdict = child.status
                self._stopping = True
                if len(self._children) > 1:
                    self._log.error("process has ended for good; stopping the others", **facts)
                for other in self._children:
                    other.stop()
            case Ending.FINISHED:
                pass

    def _start_over(self) -> None:
        self._log.info("A file has changed: restarting the worker.")
        for child in self._children:
            child.stop()
        for child in self._children:
            while child.status is None and not child.look():
                time.sleep(LOOK / 10)
        if not self._stopping:
            for child in self._children:
                child.start()
