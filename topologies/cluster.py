"""A Redis Cluster on the loopback interface."""

import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from redis.exceptions import RedisError

from runnel._core.slots import SLOTS
from runnel.server import EmbeddedServer
from runnel.server.address import free_port
from topologies.asking import HOST, ask, facts, fed_by, port_of, start_all, until

NODE_TIMEOUT = 1_000
"""Milliseconds without an answer after which nodes take one of them for dead. A very busy one may look like that."""


class Cluster:
    """A Redis Cluster on the loopback interface, each primary with one replica."""

    def __init__(self, binary: str | Path | None, primaries: int = 3, node_timeout: int = NODE_TIMEOUT) -> None:
        extra = (
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", str(node_timeout), "--cluster-replica-validity-factor", "0"),
            *("--repl-diskless-sync-delay", "0"),
        )
        # By default 10,000 above the port, among those that clients are given: on a busy machine one of them is taken.
        self._buses = [str(free_port(HOST)) for _ in range(2 * primaries)]
        self.nodes = [EmbeddedServer(binary=binary, extra=(*extra, "--cluster-port", bus)) for bus in self._buses]
        self._primaries = primaries

    @property
    def url(self) -> str:
        """With two of the nodes: the others are to be found."""
        return "redis+cluster://" + ",".join(node.url.removeprefix("redis://") for node in self.nodes[:2])

    def __enter__(self) -> Self:
        try:
            start_all(self.nodes)
            self._form()
        except BaseException:
            self.stop()
            raise
        return self

    def _form(self) -> None:
        first, *others = [node.url for node in self.nodes]
        primaries, replicas = self.nodes[: self._primaries], self.nodes[self._primaries :]
        for number, node in enumerate(primaries):
            ask(node.url, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            low, high = (SLOTS * n // self._primaries for n in (number, number + 1))
            ask(node.url, "CLUSTER", "ADDSLOTSRANGE", low, high - 1)
        for url, bus in zip(others, self._buses[1:], strict=True):
            ask(first, "CLUSTER", "MEET", HOST, url.rpartition(":")[2], bus)
        for node in self.nodes:
            until(
                lambda node=node: facts_of_cluster(node.url)["cluster_known_nodes"] == str(len(self.nodes)), "they meet"
            )
        for node, primary in zip(replicas, primaries, strict=True):
            identity = ask(primary.url, "CLUSTER", "MYID")
            until(lambda node=node, identity=identity: identity in ask(node.url, "CLUSTER", "NODES"), "they meet")
            ask(node.url, "CLUSTER", "REPLICATE", identity)
        self.settle()

    def settle(self) -> None:
        """Wait until all running nodes agree, and the primaries know and feed all replicas that run."""
        running = [node for node in self.nodes if node.running]
        for node in running:
            until(lambda node=node: facts_of_cluster(node.url)["cluster_state"] == "ok", "all slots are served")
            if facts(node.url, "replication")["role"] != "master":
                until(lambda node=node: facts(node.url, "replication")["master_link_status"] == "up", "it replicates")
        until(lambda: len({str(primaries_seen_by(node.url)) for node in running}) == 1, "they agree")
        replicas = sum(facts(node.url, "replication")["role"] != "master" for node in running)
        until(lambda: sum(len(replicas_of(node)) for node in running) == replicas, "primaries know their replicas")
        until(lambda: sum(fed_by(node.url) for node in running) == replicas, "primaries feed their replicas")

    def primary_of(self, slot: int) -> EmbeddedServer:
        """The node that serves a slot."""
        for asked in self.nodes:
            with suppress(RedisError):  # it is down, or frozen
                for low, high, address, *_ in ask(asked.url, "CLUSTER", "SLOTS", timeout=0.5):
                    if low <= slot <= high:
                        return next(node for node in self.nodes if port_of(node) == address[1])
        raise AssertionError(f"nobody serves slot {slot}")

    def replica_of(self, primary: EmbeddedServer) -> EmbeddedServer:
        """A node that replicates another. After a fail-over, it takes a while until it is known."""
        port = until(lambda: replicas_of(primary), "it has a replica")[0]
        return next(node for node in self.nodes if port_of(node) == port)

    def fail_over(self, slot: int, *how: str) -> EmbeddedServer:
        """Have the replica of who serves a slot take over. Returns the new primary.

        Arguments:
            how: ``FORCE`` or ``TAKEOVER``: without the old primary's help; by default in good order.
        """
        old = self.primary_of(slot)
        new = self.replica_of(old)
        ask(new.url, "CLUSTER", "FAILOVER", *how)
        until(lambda: self.primary_of(slot) is new, "the replica takes over")
        return new

    def move_slot(self, slot: int, to: EmbeddedServer, *, pause: float = 0.0) -> None:
        """Move a slot and its keys to another primary, key by key, as ``redis-cli --cluster reshard`` does.

        Arguments:
            pause: seconds between two keys.
        """
        source = self.primary_of(slot)
        source_id, target_id = (ask(node.url, "CLUSTER", "MYID") for node in (source, to))
        ask(to.url, "CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        ask(source.url, "CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := ask(source.url, "CLUSTER", "GETKEYSINSLOT", slot, 1):
            ask(source.url, "MIGRATE", HOST, port_of(to), keys[0], 0, 5000)
            time.sleep(pause)
        for node in (to, source, *(n for n in self.nodes if n not in (to, source) and n.running)):
            if facts(node.url, "replication")["role"] == "master":
                ask(node.url, "CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def facts_of_cluster(url: str) -> dict[str, str]:
    text = ask(url, "CLUSTER", "INFO").decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def replicas_of(primary: EmbeddedServer) -> list[int]:
    """Ports of the nodes that replicate a primary, as it sees them; none if it is a replica itself."""
    if facts(primary.url, "replication")["role"] != "master":
        return []
    lines = ask(primary.url, "CLUSTER", "REPLICAS", ask(primary.url, "CLUSTER", "MYID"))
    alive = [line.split() for line in lines if b"fail" not in line.split()[2]]
    return [int(address.split(b"@")[0].rpartition(b":")[2]) for _, address, *_ in alive]


def primaries_seen_by(url: str) -> list[tuple[int, int, int]]:
    return sorted((low, high, address[1]) for low, high, address, *_ in ask(url, "CLUSTER", "SLOTS"))
