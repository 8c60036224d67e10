"""Private servers to measure on, among them a Redis Cluster of three."""

import asyncio
import tempfile
import time
from collections.abc import Set
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from runnel._core.slots import SLOTS
from runnel._redis.link import Endpoint, Link
from runnel.errors import BenchError
from runnel.server import EmbeddedServer
from runnel.server.address import free_port

__all__ = ["PrivateCluster", "private_servers"]

HOST = "127.0.0.1"

PATIENCE = 30.0
"""Seconds until the nodes must have found each other; it takes about two."""


def private_servers(stack: ExitStack, kinds: Set[str]) -> dict[str, str]:
    """Start servers of these kinds, and a plain one: kind -> URL. The stack stops them."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    never_rewritten = ("--auto-aof-rewrite-percentage", "0")  # a rewrite in the middle would make the file smaller
    servers: dict[str, EmbeddedServer | PrivateCluster] = {
        "plain": EmbeddedServer(unix_socket=directory / "plain.sock"),
        "durable": EmbeddedServer(unix_socket=directory / "durable.sock", append_only=True, extra=never_rewritten),
        "tcp": EmbeddedServer(host=HOST),
        "cluster": PrivateCluster(),
    }
    for kind in kinds | {"plain"}:
        stack.enter_context(servers[kind])
    return {kind: servers[kind].url for kind in kinds | {"plain"}}


class PrivateCluster:
    """Primaries on the loopback interface that share the slots evenly; without replicas, so that nothing else works."""

    def __init__(self, primaries: int = 3) -> None:
        """Starts nothing yet."""
        self._buses = [free_port(HOST) for _ in range(primaries)]
        self._nodes = [
            EmbeddedServer(
                host=HOST,
                extra=(
                    *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
                    *("--cluster-port", str(bus)),
                ),
            )
            for bus in self._buses
        ]
        self._running = ExitStack()

    @property
    def url(self) -> str:
        """With all nodes."""
        return "redis+cluster://" + ",".join(node.url.removeprefix("redis://") for node in self._nodes)

    def __enter__(self) -> Self:
        with ExitStack() as starting:
            for node in self._nodes:
                starting.enter_context(node)
            asyncio.run(self._form())
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    async def _form(self) -> None:
        """Share the slots out, and have the nodes meet."""
        links = [Endpoint(node.url).link() for node in self._nodes]
        try:
            for number, link in enumerate(links):
                low, high = (SLOTS * n // len(links) for n in (number, number + 1))
                await link.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                await link.call("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
            for node, bus in zip(self._nodes[1:], self._buses[1:], strict=True):
                await links[0].call("CLUSTER", "MEET", HOST, node.url.rpartition(":")[2], bus)
            deadline = time.monotonic() + PATIENCE
            while not all([await _is_whole(link, len(links)) for link in links]):
                if time.monotonic() > deadline:
                    raise BenchError(f"The nodes of a private cluster did not find each other within {PATIENCE:g} s.")
                await asyncio.sleep(0.05)
        finally:
            for link in links:
                await link.close()


async def _is_whole(link: Link, primaries: int) -> bool:
    text = (await link.call("CLUSTER", "INFO")).decode()
    return f"cluster_size:{primaries}\r\n" in text and "cluster_state:ok\r\n" in text
