"""Where the servers are on which a fault is played: one, a primary with sentinels, or a cluster. And what ends them."""

import asyncio
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from faults.clock import Clock
from runnel._core.slots import slot_of
from runnel.server import EmbeddedServer
from topologies import Cluster, Watched, ask, facts, port_of

__all__ = ["InCluster", "OneServer", "Place", "Several", "WithSentinels"]


DEAD_AFTER = 2_000
"""Milliseconds without an answer after which a server is taken for dead. With less, a busy machine fails over now and
then without being told to."""


class Place(ABC):
    """The servers of a stage. Its methods block; plays call what takes long in a thread."""

    most_per_link = 1
    """Connections that one link of a process may have."""

    @property
    @abstractmethod
    def url(self) -> str:
        """What workers and producers connect to."""

    @property
    @abstractmethod
    def nodes(self) -> Sequence[EmbeddedServer]:
        """All servers, whether they run or not."""

    @abstractmethod
    def start(self) -> None:
        """Start everything and wait until it serves."""

    @abstractmethod
    def stop(self) -> None:
        """End everything."""

    def connections(self) -> int:
        """How many connections of processes there are; without those of replicas and sentinels, and this one."""
        return sum(_is_ours(line) for node in self.nodes for line in ask(node.url, "CLIENT", "LIST").splitlines())


def _is_ours(client: bytes) -> bool:
    fields = dict(field.split(b"=", 1) for field in client.split() if b"=" in field)
    others = fields[b"name"].startswith(b"sentinel-") or fields[b"cmd"] == b"client|list"
    return not others and not set(b"SM") & set(fields[b"flags"])


class OneServer(Place):
    """One server, with its data in a directory that outlives it.

    Attributes:
        clock: sets its time of day, where that can be set.
    """

    def __init__(self, server: EmbeddedServer, data: Path, clock: Clock | None = None) -> None:
        self._server = server
        self._data = data
        self.clock = clock

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def nodes(self) -> Sequence[EmbeddedServer]:
        return (self._server,)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    async def crash(self, down: float, lose: float = 0.0) -> float:
        """Crash it, and start it again with what it had on disk. Returns when it had crashed.

        Arguments:
            down: seconds that it is away.
            lose: seconds of writes that were not on the disk yet, as when the machine loses its power.
        """
        log = next(iter((self._data / "appendonlydir").glob("*.incr.aof")), None)
        size = log.stat().st_size if log is not None else 0
        await asyncio.sleep(lose)
        await asyncio.to_thread(self._server.kill)
        crashed = time.monotonic()  # after: until then it may have confirmed something
        if lose and log is not None:
            os.truncate(log, size)
        await asyncio.sleep(down)
        await asyncio.to_thread(self._server.start)
        return crashed


class Several(Place):
    """Servers of which another one can take over."""

    def __init__(self, servers: Watched | Cluster) -> None:
        self._servers = servers

    @property
    def url(self) -> str:
        return self._servers.url

    @property
    def nodes(self) -> Sequence[EmbeddedServer]:
        return self._servers.nodes

    def start(self) -> None:
        self._servers.__enter__()

    def stop(self) -> None:
        self._servers.stop()

    def settle(self) -> None:
        """Have who was a primary be a replica, and wait until all replicas have what their primaries have."""
        self._servers.settle()

    def cut_off_replicas(self, primary: EmbeddedServer) -> None:
        """From now on, what a primary writes goes nowhere. Clients notice nothing."""
        for node in self.nodes:
            if facts(node.url, "replication").get("master_port") == str(port_of(primary)):
                ask(node.url, "CONFIG", "SET", "masterauth", "a password that nobody asks for")  # and so is refused
        ask(primary.url, "CLIENT", "KILL", "TYPE", "replica")

    def mend_replicas(self) -> None:
        """Whoever runs may replicate again."""
        for node in self.nodes:
            if node.running:
                ask(node.url, "CONFIG", "SET", "masterauth", "")

    @abstractmethod
    def primary(self, key: str) -> EmbeddedServer:
        """Who serves a key, as the others say."""

    @abstractmethod
    def fail_over(self, key: str, *, forced: bool) -> None:
        """Have a replica take over from who serves a key; ``forced``: without its help, where there is a choice."""


class WithSentinels(Several):
    """A primary that three sentinels watch."""

    _servers: Watched

    def __init__(self, binary: str | Path | None, replicas: int) -> None:
        super().__init__(Watched(binary, replicas, down_after=DEAD_AFTER))

    def primary(self, key: str) -> EmbeddedServer:
        return self._servers.primary

    def fail_over(self, key: str, *, forced: bool) -> None:
        self._servers.fail_over()


class InCluster(Several):
    """Three primaries with a replica each."""

    _servers: Cluster

    def __init__(self, binary: str | Path | None) -> None:
        super().__init__(Cluster(binary, node_timeout=DEAD_AFTER))
        self.most_per_link = len(self.nodes)

    def primary(self, key: str) -> EmbeddedServer:
        return self._servers.primary_of(slot_of(key))

    def fail_over(self, key: str, *, forced: bool) -> None:
        self._servers.fail_over(slot_of(key), *(["FORCE"] if forced else []))

    def move(self, key: str, to: EmbeddedServer, pause: float) -> None:
        """Move the slot of a key to another primary, key by key, with so many seconds in between."""
        self._servers.move_slot(slot_of(key), to, pause=pause)
