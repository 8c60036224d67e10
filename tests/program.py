"""What tests of the command line share: a directory with an app, and the program run in it."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runnel import App, Record
from runnel.admin import Reset, plan_reset

PATIENCE = 30.0
"""Seconds that anything may take; far above what it does, so that a slow machine does not fail."""

SHOP = """
import asyncio
import os
from pathlib import Path

from runnel import App, Record

app = App(name=os.environ["TEST_APP"], heartbeat_interval=0.2)


class Order(Record):
    order_id: int
    amount: float = 1.0
    note: str = ""


orders = app.stream("orders", record=Order, partition_by="order_id", partition_count=4)


def say(word, number):
    print(f"{word} {number}\\n", end="")  # in one piece, whoever else prints


@app.processor(orders)
async def printer(events):
    async for order in events.records():
        say("begin", order.order_id)
        while order.note == "slow" and not Path("gate").exists():
            await asyncio.sleep(0.01)
        if order.note == "bad":
            raise ValueError("a bad order")
        say("end", order.order_id)


@app.processor(orders)
async def counter(events):
    async for order in events.records():
        say("count", order.order_id)
"""


class Order(Record):
    """The same as in ``shop.py``."""

    order_id: int
    amount: float = 1.0
    note: str = ""


def until(condition: Callable[[], Any], what: Callable[[], str] | str = "") -> Any:
    """Wait until a condition is true; returns what it returned."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.02)
    return found


class Running:
    """A command that goes on until it is stopped. What it prints goes to files."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str], number: int) -> None:
        self._out = directory / f"{number}.out"
        self._err = directory / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def says(self, text: str, times: int = 1) -> None:
        """Wait until it has printed a text so many times, to either stream."""
        until(
            lambda: (self.stdout + self.stderr).count(text) >= times,
            lambda: f"{text!r} not {times} times in\n{self.stdout}\n{self.stderr}",
        )

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def address(self) -> str:
        """Of a server, as soon as it has printed that."""
        printed: str = until(self._out.read_text, lambda: self.stderr)
        return printed.strip()

    def ends(self) -> int:
        """Wait for its exit status."""
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running:\n{self.stdout}\n{self.stderr}") from None

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Signal it, and wait for its exit status."""
        self.tell(number)
        return self.ends()

    def workers(self) -> list[int]:
        """The process ids of the workers that it has logged."""
        return [int(pid) for pid in re.findall(r"worker started +worker=\S*-(\d+)-\w+", self.stderr)]


@dataclass
class Project:
    """A directory with ``shop.py``, on the shared server."""

    directory: Path
    environment: dict[str, str]
    running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.write(shop=SHOP)

    def write(self, **sources: str) -> None:
        """Python files, by module name."""
        for name, source in sources.items():
            path = self.directory / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)

    def strict(self) -> None:
        """Make ``amount`` a field that must be given."""
        self.write(shop=SHOP.replace("amount: float = 1.0", "amount: float"))

    def run(
        self, *arguments: str, stdin: str = "", stdout: int = subprocess.PIPE, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "runnel", *arguments],
            cwd=self.directory,
            env=self.environment | environment,
            input=stdin,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def start(self, *arguments: str, **environment: str) -> Running:
        """Start a command that goes on."""
        command = [sys.executable, "-m", "runnel", *arguments]
        self.running.append(Running(command, self.directory, self.environment | environment, len(self.running)))
        return self.running[-1]

    def send(self, *order_ids: int, note: str = "") -> list[str]:
        """Send orders, without the program: it takes half a second to start. Returns their ids."""

        async def sending() -> list[str]:
            async with self._app() as app:
                return await app.streams["orders"].send(*(Order(order_id=n, note=note) for n in order_ids))

        return asyncio.run(sending())

    def plan(self, processor: str) -> list[Reset]:
        """What a reset to the beginning would do; changes nothing."""
        return asyncio.run(plan_reset(self._app(), processor, "0"))

    def _app(self) -> App:
        """The same as in ``shop.py``."""
        app = App(name=self.environment["TEST_APP"], redis_url=self.environment["RUNNEL_REDIS_URL"])
        orders = app.stream("orders", record=Order, partition_by="order_id", partition_count=4)
        for name in ("printer", "counter"):

            @app.processor(orders, name=name)
            async def _(events: object) -> None: ...

        return app

    def waiting(self, processor: str) -> int:
        """How many events are not processed yet."""
        return sum(item.lag for item in self.plan(processor))

    def positions(self, processor: str) -> dict[int, str | None]:
        """Where a processor is in each partition."""
        return {item.partition: item.position for item in self.plan(processor)}

    def close(self) -> None:
        """End what was started, by process id."""
        for one in self.running:
            if one.process.poll() is None:
                one.process.terminate()
                try:
                    one.process.wait(5)
                except subprocess.TimeoutExpired:
                    one.process.kill()
                    one.process.wait()


def environment(redis_url: str, app_name: str, server_binary: str | Path | None, directory: Path) -> dict[str, str]:
    """Of a command: ours without anything of Runnel's, and with the server under test in front of the PATH."""
    programs = directory / "bin"
    programs.mkdir()
    path = os.environ["PATH"]
    if server_binary is not None:
        (programs / "valkey-server").symlink_to(server_binary)
        path = f"{programs}{os.pathsep}{path}"
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("RUNNEL_", "FORCE_COLOR"))}
    return ours | {
        "PATH": path,
        "RUNNEL_REDIS_URL": redis_url,
        "TEST_APP": app_name,
        "COLUMNS": "120",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
