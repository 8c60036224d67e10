"""``docs/operations.md`` is true: each situation is brought about, and the commands print what the page says.

The blocks of a section are played in their order. Lines must be the same up to ids, names of workers, times and
numbers.
To write what is printed now into the page::

    RUNNEL_TEST_WRITE_PAGES=1 make test ARGS=tests/test_operations.py
"""

import asyncio
import itertools
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from program import PATIENCE, Project, Running, environment, until
from runnel import App, Record
from runnel.admin import plan_reset, status_of
from runnel.server import EmbeddedServer
from runnel.server.address import free_port
from test_docs import ENTRY_ID, SHELLS, Block, blocks_of, commands_of

pytestmark = pytest.mark.processes

PAGE = Path(__file__).parent.parent / "docs" / "operations.md"
WRITE = bool(os.environ.get("RUNNEL_TEST_WRITE_PAGES"))

BOOKS = """
import asyncio
import os
import signal
from pathlib import Path


async def book(order):
    mood = Path("mood").read_text()
    if order.amount < 0:
        if mood == "strict":
            raise ValueError(f"an order of {order.amount:.2f}")
        if mood == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
    while Path("mood").read_text() == "hanging":
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.1 if mood == "slow" else 0.001)
    with Path("books").open("a") as books:
        print(order.order_id, file=books)
"""


class Order(Record):
    """The same as on the page."""

    order_id: int
    customer: str
    amount: float


CUSTOMERS = ("ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal")
UNLUCKY = 1
"""The partition on the page in which something goes wrong."""


class Shop:
    """The app of the page, in a directory of its own, on a server of its own."""

    def __init__(self, directory: Path, server: EmbeddedServer, binary: str | Path | None) -> None:
        self.directory, self.server = directory, server
        variables = environment(server.url, "shop", binary, directory) | {
            "RUNNEL_APP": "example:app",
            "RUNNEL_BACKOFF": "0.02",
            "RUNNEL_HEARTBEAT_INTERVAL": "0.2",
        }
        self.project = Project(directory, variables)
        (source,) = (block.source for block in blocks_of(PAGE) if block.directives.get("file") == "example.py")
        self.project.write(example=source, books=BOOKS)
        self.mood("fine")
        self._sent = 0
        self._threads: list[tuple[threading.Thread, threading.Event]] = []

    def mood(self, word: str) -> None:
        """What ``book`` does from now on: fine, slow, hanging, strict or deadly; the last two to bad orders only."""
        (self.directory / "next").write_text(word)
        (self.directory / "next").replace(self.directory / "mood")

    def worker(self, *options: str, **variables: str) -> Running:
        """Start one, and wait until it has its partitions."""
        started = self.project.start("worker", *options, **variables)
        started.says("partitions assigned")
        return started

    def send(self, number: int, *, amount: float = 9.99, partition: int | None = None) -> None:
        """Orders of all customers in turn, or of those in one partition."""

        async def sending() -> None:
            async with self._app() as app:
                orders = app.streams["orders"]
                batch: list[Order] = []
                while len(batch) < number:
                    for customer in CUSTOMERS:
                        order = Order(order_id=self._sent, customer=customer, amount=amount)
                        if len(batch) < number and partition in (None, orders.partition_of(order)):
                            batch.append(order)
                            self._sent += 1
                await orders.send(*batch)

        asyncio.run(sending())

    def keeps_sending(self) -> threading.Event:
        """Orders, until the event is set."""
        enough = threading.Event()

        def sending() -> None:
            while not enough.wait(0.1):
                self.send(16)

        thread = threading.Thread(target=sending, name="producer")
        thread.start()
        self._threads.append((thread, enough))
        return enough

    def settles(self, workers: int) -> None:
        """Wait until so many workers share the partitions, and none is to move."""

        async def look() -> bool:
            async with self._app() as app:
                (processor,) = (await status_of(app)).processors
                states = {partition.state for partition in processor.partitions}
                members = [len(member.partitions) for member in processor.members if member.state == "alive"]
                return members == [4 // workers] * workers and states in ({"running"}, {"paused"})

        until(lambda: asyncio.run(look()), lambda: "\n".join(one.stderr for one in self.project.running))

    def close(self) -> None:
        """End what was started."""
        for thread, enough in self._threads:
            enough.set()
            thread.join()
        self.project.close()

    def booked(self) -> list[int]:
        """The orders in the books."""
        path = self.directory / "books"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def lag(self) -> dict[int, int]:
        """By partition, where there is any."""
        resets = asyncio.run(plan_reset(self._app(), "sum_up", "0"))
        return {item.partition: item.lag for item in resets if item.lag}

    def _app(self) -> App:
        app = App(name="shop", partition_count=4, redis_url=self.server.url)
        orders = app.stream("orders", record=Order, partition_by="customer")

        @app.processor(orders)
        async def sum_up(events: object) -> None: ...

        return app


class Section:
    """A section of the page, whose blocks are played one after the other."""

    def __init__(self, heading: str, shop: Shop) -> None:
        text = PAGE.read_text()
        self._start = text.index(f"\n## {heading}\n")
        end = text.find("\n## ", self._start + 1)
        first, last = text[: self._start].count("\n"), text[: end if end > 0 else len(text)].count("\n")
        self._blocks = [block for block in blocks_of(PAGE) if first < block.line <= last]
        self._shop = shop

    def runs(self) -> None:
        """The next block: its commands print what it says."""
        block = self._next()
        assert block.language in SHELLS, block
        commands = commands_of(block)
        played = ""
        for number, (command, expected) in enumerate(commands, 1):
            words = shlex.split(command)
            assert words[0] == "runnel", block
            ended = subprocess.run(
                [sys.executable, "-m", *words],
                cwd=self._shop.directory,
                env=self._shop.project.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            status = int(block.directives.get("exit status", 0)) if number == len(commands) else 0
            assert ended.returncode == status, f"{block}: {command}\n{ended.stdout}"
            printed = self._neutral(ended.stdout)
            played += f"$ {command}\n{printed}"
            assert WRITE or shape(printed) == shape(expected), f"{block}: {command}\n{printed}"
        self._write(block, played)

    def shows(self, log: Callable[[], str]) -> None:
        """The next block: a log has its lines, in this order, perhaps with others between them."""
        block = self._next()
        assert "log of a worker" in block.directives, block
        wanted = [message(line) for line in block.source.splitlines()]

        def found() -> list[str]:
            lines = iter(self._neutral(log()).splitlines())
            chosen = []
            for want in wanted:
                fitting = (line for line in lines if message(line).startswith(want))
                chosen += itertools.islice(fitting, 1)
            return chosen if len(chosen) == len(wanted) else []

        chosen = until(found, lambda: f"{block}: {wanted}\n{log()}")
        self._write(block, "\n".join(chosen) + "\n")

    def ends(self) -> None:
        """There is no block that was not played."""
        assert not self._blocks, self._blocks[0]

    def _next(self) -> Block:
        assert self._blocks, "the page has no more blocks in this section"
        return self._blocks.pop(0)

    def _neutral(self, text: str) -> str:
        """Without what is of this machine."""
        text = text.replace(str(self._shop.directory), "/opt/shop").replace(f"{socket.gethostname()}-", "host-")
        return text.replace(self._shop.server.url, "redis://127.0.0.1:6379")

    def _write(self, block: Block, played: str) -> None:
        if WRITE:
            text = PAGE.read_text()
            before, after = text[: self._start], text[self._start :]
            old, new = (f"```{block.language}\n{source}```" for source in (block.source, played))
            assert old in after
            PAGE.write_text(before + after.replace(old, new, 1))


def message(line: str) -> str:
    """What a line of a log says, with the names of its facts, but without the time and the facts."""
    matched = re.fullmatch(r"\S+ \[\w+ *\] (.+?)( +\w+=.*)?", line)
    if matched is None:
        return line
    said, facts = matched.groups()
    return " ".join([said, *re.findall(r" (\w+)=", facts or "")])


def shape(text: str) -> list[str]:
    """The lines without ids, names of workers, times and numbers, and without the width of columns."""
    text = ENTRY_ID.sub("ID", text)
    text = re.sub(r"\bhost-\d+-[0-9a-f]{6}\b", "WORKER", text)
    text = re.sub(r" ago by \S+", " ago by WHO", text)
    text = re.sub(r"\b(Valkey|Redis) \d[\d.]*", "SERVER", text)
    text = re.sub(r"\d[\d.,:]*\d|\d", "N", text)
    text = re.sub(r"N(?:(?:-|, )N)+", "N", text)
    return [" ".join(line.split()) for line in text.splitlines()]


@pytest.fixture
def server(server_binary: str | Path | None, tmp_path: Path) -> Iterator[EmbeddedServer]:
    """One that keeps its data, at an address that it keeps as well."""
    with EmbeddedServer(
        binary=server_binary, port=free_port("127.0.0.1"), data_dir=tmp_path / "data", append_only=True
    ) as running:
        yield running


@pytest.fixture
def shop(server: EmbeddedServer, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path, server, server_binary)
    yield made
    made.close()


def test_the_lag_grows(shop: Shop) -> None:
    section = Section("The lag grows", shop)
    shop.mood("slow")
    first = shop.worker(RUNNEL_STALL_TIMEOUT="1")
    sending = shop.keeps_sending()
    until(lambda: sum(shop.lag().values()) > 300, lambda: str(shop.lag()))
    section.runs()
    section.runs()
    section.runs()
    second = shop.worker()
    shop.settles(workers=2)
    section.runs()
    sending.set()
    shop.mood("hanging")
    section.shows(lambda: first.stderr)
    section.ends()
    shop.mood("fine")
    assert first.stop() == 0
    assert second.stop() == 0


def test_an_event_fails_again_and_again(shop: Shop) -> None:
    section = Section("An event fails again and again", shop)
    shop.mood("strict")
    worker = shop.worker()
    shop.send(1, amount=-1, partition=UNLUCKY)
    shop.send(2, partition=UNLUCKY)
    section.shows(lambda: worker.stderr)
    section.runs()
    shop.send(8)  # the others go on
    until(lambda: shop.lag() == {UNLUCKY: 4}, lambda: str(shop.lag()))
    shop.mood("fine")
    section.runs()
    until(lambda: shop.lag() == {}, lambda: str(shop.lag()))
    shop.mood("strict")
    shop.send(1, amount=-1, partition=UNLUCKY)
    worker.says("the partition is quarantined", 2)
    section.runs()
    shop.mood("fine")
    section.runs()
    until(lambda: len(shop.booked()) == 12 and shop.lag() == {}, lambda: str(shop.booked()))
    assert worker.stop() == 0

    shop.project.write(example=(shop.directory / "example.py").read_text().replace("QUARANTINE", "HALT"))
    shop.mood("strict")
    shop.send(1, amount=-1, partition=UNLUCKY)
    halted = shop.project.start("worker")
    assert halted.ends() == 1
    assert "processing failed; the worker stops" in halted.stderr
    section.runs()
    assert shop.lag() == {}
    section.ends()


def test_a_worker_keeps_dying(shop: Shop) -> None:
    section = Section("A worker keeps dying", shop)
    shop.mood("deadly")
    workers = shop.worker("-p", "2")
    shop.send(8)
    until(lambda: shop.lag() == {}, lambda: str(shop.lag()))
    shop.send(1, amount=-1, partition=UNLUCKY)
    shop.send(2, partition=UNLUCKY)
    section.shows(lambda: workers.stderr)
    section.runs()
    shop.settles(workers=2)
    section.runs()
    section.runs()
    section.runs()
    until(lambda: shop.lag() == {}, lambda: str(shop.lag()))
    assert len(shop.booked()) == 10
    assert workers.stop() == 0
    shop.send(3)
    section.runs()
    section.ends()


def test_a_deployment(shop: Shop) -> None:
    section = Section("A deployment", shop)
    shop.mood("slow")
    old = [shop.worker(), shop.worker()]
    shop.settles(workers=2)
    shop.send(200)
    new = []
    for worker in old:
        until(shop.booked)
        assert shop.lag()
        assert worker.stop() == 0
        new.append(shop.worker())
    section.shows(lambda: old[0].stderr)
    shop.mood("fine")
    until(lambda: len(shop.booked()) >= 200 and shop.lag() == {}, lambda: str(shop.lag()))
    assert sorted(shop.booked()) == list(range(200)), "each order is booked once"
    shop.settles(workers=2)
    section.runs()
    section.runs()
    section.ends()
    assert [worker.stop() for worker in new] == [0, 0]


def test_redis_was_restarted(shop: Shop, tmp_path: Path) -> None:
    section = Section("Redis was restarted", shop)
    worker = shop.worker()
    shop.send(8)
    until(lambda: len(shop.booked()) == 8 and shop.lag() == {})
    shop.server.stop()
    shutil.copytree(tmp_path / "data", tmp_path / "backup")
    worker.says("waiting for Redis")
    section.runs()
    shop.server.start()
    section.shows(lambda: worker.stderr)
    shop.settles(workers=1)
    section.runs()

    shop.send(2, partition=UNLUCKY)
    until(lambda: len(shop.booked()) == 10 and shop.lag() == {})
    shop.server.kill()
    shutil.rmtree(tmp_path / "data")
    shutil.copytree(tmp_path / "backup", tmp_path / "data")
    shop.server.start()
    shop.send(1, partition=UNLUCKY)
    section.shows(lambda: worker.stderr)
    until(lambda: shop.lag() == {}, lambda: str(shop.lag()))
    shop.settles(workers=1)
    section.runs()
    section.ends()
    assert worker.stop() == 0
