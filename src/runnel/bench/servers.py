"""Private servers to measure on, all on this machine."""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Set
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path

from runnel._core.slots import SLOTS
from runnel._redis.link import Endpoint, Link
from runnel._redis.queries import server_facts
from runnel.errors import BenchError
from runnel.server import EmbeddedServer
from runnel.server.address import free_port

__all__ = ["private_servers"]

HOST = "127.0.0.1"

PRIMARIES = 3
"""Of the cluster; without replicas, so that nothing else works."""

PATIENCE = 30.0
"""Seconds until servers must have found each other; it takes about two."""


def private_servers(stack: ExitStack, kinds: Set[str]) -> dict[str, str]:
    """Start servers of these kinds, and a plain one: kind -> URL. The stack stops them."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    never_rewritten = ("--auto-aof-rewrite-percentage", "0")  # a rewrite in the middle would make the file smaller
    servers: dict[str, Callable[[], AbstractContextManager[str]]] = {
        "plain": lambda: _started(EmbeddedServer(unix_socket=directory / "plain.sock")),
        "durable": lambda: _started(
            EmbeddedServer(unix_socket=directory / "durable.sock", append_only=True, extra=never_rewritten)
        ),
        "tcp": lambda: _started(EmbeddedServer(host=HOST)),
        "replicated": _replicated,
        "cluster": _cluster,
    }
    return {kind: stack.enter_context(servers[kind]()) for kind in kinds | {"plain"}}


@contextmanager
def _started(server: EmbeddedServer) -> Iterator[str]:
    with server:
        yield server.url


@contextmanager
def _replicated() -> Iterator[str]:
    """A server with one replica."""
    with EmbeddedServer(host=HOST) as primary, EmbeddedServer(host=HOST) as replica:
        asyncio.run(_follow(replica, primary))
        yield primary.url


@contextmanager
def _cluster() -> Iterator[str]:
    """Primaries that share the slots evenly."""
    with ExitStack() as stack:
        nodes: list[EmbeddedServer] = []
        buses = [free_port(HOST) for _ in range(PRIMARIES)]
        for bus in buses:
            extra = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--cluster-port", str(bus))
            nodes.append(stack.enter_context(EmbeddedServer(host=HOST, extra=extra)))
        asyncio.run(_form(nodes, buses))
        yield "redis+cluster://" + ",".join(node.url.removeprefix("redis://") for node in nodes)


async def _follow(replica: EmbeddedServer, primary: EmbeddedServer) -> None:
    link = Endpoint(replica.url).link()
    await link.call("REPLICAOF", HOST, _port(primary))
    await _eventually(partial(_follows, link), "The replica of a private server did not follow it")
    await link.close()


async def _form(nodes: list[EmbeddedServer], buses: list[int]) -> None:
    """Share the slots out, and have the nodes meet."""
    links = [Endpoint(node.url).link() for node in nodes]
    for number, link in enumerate(links):
        low, high = (SLOTS * n // len(links) for n in (number, number + 1))
        await link.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        await link.call("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
    for node, bus in zip(nodes[1:], buses[1:], strict=True):
        await links[0].call("CLUSTER", "MEET", HOST, _port(node), bus)
    for link in links:
        await _eventually(partial(_is_whole, link), "The nodes of a private cluster did not find each other")
        await link.close()


def _port(server: EmbeddedServer) -> str:
    return server.url.rpartition(":")[2]


async def _eventually(condition: Callable[[], Awaitable[bool]], failure: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > deadline:
            raise BenchError(f"{failure} within {PATIENCE:g} s.")
        await asyncio.sleep(0.05)


async def _follows(replica: Link) -> bool:
    return (await server_facts(replica, "replication")).get("master_link_status") == "up"


async def _is_whole(node: Link) -> bool:
    text = (await node.call("CLUSTER", "INFO")).decode()
    return f"cluster_size:{PRIMARIES}\r\n" in text and "cluster_state:ok\r\n" in text
