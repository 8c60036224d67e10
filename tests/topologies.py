"""Real servers in the arrangements that Runnel runs on: a cluster, and a primary with sentinels. Made by commands."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os import getpid
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from redis.connection import Connection
from redis.exceptions import RedisError

from runnel._core.slots import SLOTS
from runnel.server import EmbeddedServer, watchdog
from runnel.server.address import free_port
from runnel.server.binary import find_binary

HOST = "127.0.0.1"

PATIENCE = 30.0
"""Seconds until servers must have found each other; it takes about 3."""

NODE_TIMEOUT = 1_000
"""Milliseconds without an answer after which nodes take one of them for dead."""


def ask(url: str, *command: Any, timeout: float = 5.0) -> Any:
    """One command on one server; its raw answer. Blocks for a moment, whoever runs the event loop."""
    parts = urlsplit(url)
    connection = Connection(host=parts.hostname, port=parts.port, socket_timeout=timeout, retry=None, protocol=2)
    try:
        connection.send_command(*command)
        return connection.read_response()
    finally:
        connection.disconnect()


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition is true, and the servers that it asks answer; returns what it returned."""
    deadline = time.monotonic() + PATIENCE
    reason: object = "false"
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except RedisError as error:
            reason = error
        time.sleep(0.02)
    raise AssertionError(f"not within {PATIENCE:g} s: {what} ({reason})")


def facts(url: str, section: str) -> dict[str, str]:
    """What a server says of itself in ``INFO``."""
    text = ask(url, "INFO", section).decode()
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)


def port_of(server: EmbeddedServer) -> int:
    return int(server.url.rpartition(":")[2])


def start_all(servers: list[EmbeddedServer]) -> None:
    """Start servers at once; each takes some 50 ms, mostly of waiting."""
    with ThreadPoolExecutor(len(servers)) as pool:
        for outcome in [pool.submit(server.start) for server in servers]:
            outcome.result()


class Cluster:
    """A Redis Cluster on the loopback interface, each primary with one replica."""

    def __init__(self, binary: str | Path | None, primaries: int = 3) -> None:
        extra = (
            *("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf"),
            *("--cluster-node-timeout", str(NODE_TIMEOUT), "--cluster-replica-validity-factor", "0"),
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
        """Wait until all running nodes agree, and every primary has a connected replica, as far as there are any."""
        running = [node for node in self.nodes if node.running]
        for node in running:
            until(lambda node=node: facts_of_cluster(node.url)["cluster_state"] == "ok", "all slots are served")
            if facts(node.url, "replication")["role"] != "master":
                until(lambda node=node: facts(node.url, "replication")["master_link_status"] == "up", "it replicates")
        until(lambda: len({str(primaries_seen_by(node.url)) for node in running}) == 1, "they agree")
        replicas = sum(facts(node.url, "replication")["role"] != "master" for node in running)
        until(lambda: sum(len(replicas_of(node)) for node in running) == replicas, "primaries know their replicas")

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

    def fail_over(self, slot: int) -> EmbeddedServer:
        """Have the replica of who serves a slot take over, in good order. Returns the new primary."""
        old = self.primary_of(slot)
        new = self.replica_of(old)
        ask(new.url, "CLUSTER", "FAILOVER")
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


class Sentinel:
    """One sentinel. It keeps its state in a file, from which it also takes its configuration."""

    def __init__(self, binary: str | Path | None, service: str, port: int, *, lines: Sequence[str] = ()) -> None:
        """Arguments:
        port: of the primary.
        lines: more of the configuration; with any of TLS, it listens for that as well.
        """
        self._directory = tempfile.TemporaryDirectory(prefix="runnel-sentinel-", ignore_cleanup_errors=True)
        self.port, self.tls_port = free_port(HOST), free_port(HOST)
        quorum = 1 if lines else 2
        listens = f"tls-port {self.tls_port}\n" if lines else ""
        directory = Path(self._directory.name)
        configuration = directory / "sentinel.conf"
        configuration.write_text(
            f"bind {HOST}\nport {self.port}\ndir {directory}\n{listens}"
            + "".join(f"{line}\n" for line in lines)
            + f"sentinel monitor {service} {HOST} {port} {quorum}\n"
            f"sentinel down-after-milliseconds {service} 1000\nsentinel failover-timeout {service} 4000\n"
        )
        command = [str(find_binary(None if binary is None else str(binary))), str(configuration), "--sentinel"]
        # The watchdog of the embedded server ends it with us, whatever becomes of us.
        with (directory / "log").open("wb") as log:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", "-S", watchdog.__file__, str(getpid()), self._directory.name, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}"

    def stop(self) -> None:
        assert self._watchdog.stdin is not None
        assert self._watchdog.stdout is not None
        self._watchdog.stdin.close()
        self._watchdog.wait(10)
        self._watchdog.stdout.close()
        self._directory.cleanup()


class Watched:
    """A primary with replicas, and three sentinels that watch it."""

    service = "events"

    def __init__(self, binary: str | Path | None, replicas: int = 2) -> None:
        self._binary = binary
        self.nodes = [
            EmbeddedServer(binary=binary, extra=("--repl-diskless-sync-delay", "0")) for _ in range(1 + replicas)
        ]
        self.sentinels: list[Sentinel] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"{HOST}:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.service}/0"

    def __enter__(self) -> Self:
        try:
            start_all(self.nodes)
            primary, *replicas = self.nodes
            for replica in replicas:
                ask(replica.url, "REPLICAOF", HOST, port_of(primary))
            self.sentinels = [Sentinel(self._binary, self.service, port_of(primary)) for _ in range(3)]
            self.settle()
        except BaseException:
            self.stop()
            raise
        return self

    def settle(self) -> None:
        """Wait until all replicate, and all sentinels know each other and the replicas."""
        for node in self.nodes:
            if node.running and facts(node.url, "replication")["role"] == "slave":
                until(lambda node=node: facts(node.url, "replication")["master_link_status"] == "up", "it replicates")
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._sees_all(sentinel), "the sentinels know all")

    def _sees_all(self, sentinel: Sentinel) -> bool:
        flat = ask(sentinel.url, "SENTINEL", "MASTER", self.service)
        seen = dict(zip(flat[::2], flat[1::2], strict=True))
        return (int(seen[b"num-slaves"]), int(seen[b"num-other-sentinels"])) == (len(self.nodes) - 1, 2)

    @property
    def primary(self) -> EmbeddedServer:
        """The server that the sentinels name."""
        _, port = ask(self.sentinels[0].url, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service)
        return next(node for node in self.nodes if port_of(node) == int(port))

    def fail_over(self) -> EmbeddedServer:
        """Have a replica take over, in good order. Returns the new primary."""
        old = self.primary
        ask(self.sentinels[0].url, "SENTINEL", "FAILOVER", self.service)
        until(lambda: self.primary is not old, "a replica takes over")
        return self.primary

    def stop(self) -> None:
        for sentinel in self.sentinels:
            sentinel.stop()
        for node in self.nodes:
            node.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
