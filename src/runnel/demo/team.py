"""The workers: real processes, as ``runnel worker`` starts them. Owns them and what they print."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from runnel.demo.app import DIRECTORY, PARENT
from runnel.demo.journal import Reader
from runnel.errors import RunnelError

__all__ = ["Team", "Worker", "WorkerEnded"]

COMMAND = (sys.executable, "-m", "runnel", "worker", "runnel.demo.app:app")

STOP_PATIENCE = 10.0
"""Seconds that a worker gets to finish its events and leave, which takes it a tenth of one."""


class WorkerEnded(RunnelError):
    """A worker that nobody stopped has ended."""


class Worker:
    """One of them.

    Attributes:
        pid: its process id.
        journal: what it has processed.
    """

    def __init__(self, directory: Path, redis_url: str) -> None:
        # What is set for the user's own app must not change the demo.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RUNNEL_")}
        environment |= {"RUNNEL_REDIS_URL": redis_url, DIRECTORY: str(directory), PARENT: str(os.getpid())}
        with (directory / "output").open("ab") as output:
            self._output = Path(output.name)
            # In a group of its own: a Ctrl-C is for the demo, which then ends its workers.
            self._process = subprocess.Popen(
                COMMAND, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0
            )
        self.pid = self._process.pid
        self.journal = Reader(directory, self.pid)

    def check(self) -> None:
        """Make sure that it is running.

        Raises:
            WorkerEnded: with the last lines of what the workers have printed.
        """
        status = self._process.poll()
        if status is not None:
            raise WorkerEnded(f"Worker {self.pid} ended by itself, with status {status}. {self._said()}")

    def kill(self) -> None:
        """SIGKILL, now."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait until it has left.

        Raises:
            WorkerEnded: not in time, or not well.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_PATIENCE)
        except subprocess.TimeoutExpired:
            raise WorkerEnded(f"Worker {self.pid} did not stop within {STOP_PATIENCE:g} s. {self._said()}") from None
        if status != 0:
            raise WorkerEnded(f"Worker {self.pid} stopped with status {status}. {self._said()}")

    def _said(self) -> str:
        return "The workers said:\n" + "\n".join(self._output.read_text(errors="replace").splitlines()[-20:])


class Team:
    """All of them. A context manager, which leaves none of them behind.

    Attributes:
        workers: those that should be running.
        journals: of all that were started.
    """

    def __init__(self, directory: Path, redis_url: str, size: int) -> None:
        self._directory = directory
        self._redis_url = redis_url
        self._size = size
        self.workers: list[Worker] = []
        self.journals: list[Reader] = []

    def check(self) -> None:
        """Make sure that all are running that should be.

        Raises:
            WorkerEnded: one is not.
        """
        for worker in self.workers:
            worker.check()

    def __enter__(self) -> Self:
        try:
            for _ in range(self._size):
                worker = Worker(self._directory, self._redis_url)
                self.workers.append(worker)
                self.journals.append(worker.journal)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        while self.workers:
            self.workers.pop().kill()
