"""A primary with replicas, and the sentinels that watch it."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from os import getpid
from pathlib import Path
from types import TracebackType
from typing import Self

from runnel.server import EmbeddedServer, watchdog
from runnel.server.address import free_port
from runnel.server.binary import find_binary
from topologies.asking import HOST, ask, facts, fed_by, port_of, start_all, until

DOWN_AFTER = 1_000
"""Milliseconds without an answer after which a sentinel takes a server for dead. Very busy ones may look like that."""


class Sentinel:
    """One sentinel. It keeps its state in a file, from which it also takes its configuration."""

    def __init__(
        self,
        binary: str | Path | None,
        service: str,
        port: int,
        *,
        lines: Sequence[str] = (),
        down_after: int = DOWN_AFTER,
    ) -> None:
        """Arguments:
        port: of the primary.
        down_after: milliseconds.
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
            f"sentinel down-after-milliseconds {service} {down_after}\nsentinel failover-timeout {service} 4000\n"
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

    def __init__(self, binary: str | Path | None, replicas: int = 2, down_after: int = DOWN_AFTER) -> None:
        self._binary = binary
        self._down_after = down_after
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
            until(lambda: fed_by(primary.url) == len(replicas), "they replicate")  # a sentinel looks every 10 s
            self.sentinels = [
                Sentinel(self._binary, self.service, port_of(primary), down_after=self._down_after) for _ in range(3)
            ]
            until(lambda: self.primary is primary, "the sentinels answer")
            self.settle()
        except BaseException:
            self.stop()
            raise
        return self

    def settle(self) -> None:
        """Have all replicate the primary, and wait until they do and all sentinels know each other and the replicas.

        A primary that comes back after a fail-over would be told so by a sentinel, but only after 10 s.
        """
        until(self._agreed, "the sentinels agree")
        primary, running = self.primary, [node for node in self.nodes if node.running]
        for node in running:
            if node is not primary and facts(node.url, "replication")["role"] == "master":
                ask(node.url, "REPLICAOF", HOST, port_of(primary))
        until(lambda: fed_by(primary.url) == len(running) - 1, "they replicate")
        for sentinel in self.sentinels:
            until(lambda sentinel=sentinel: self._sees_all(sentinel), "the sentinels know all")

    def _agreed(self) -> bool:
        """Whether no fail-over is under way any more, and who is named by all is a primary."""
        seen = [self._seen_by(sentinel) for sentinel in self.sentinels]
        one = len({one[b"port"] for one in seen}) == 1 and {one[b"flags"] for one in seen} == {b"master"}
        return one and facts(self.primary.url, "replication")["role"] == "master"

    def _sees_all(self, sentinel: Sentinel) -> bool:
        seen = self._seen_by(sentinel)
        return (int(seen[b"num-slaves"]), int(seen[b"num-other-sentinels"])) == (len(self.nodes) - 1, 2)

    def _seen_by(self, sentinel: Sentinel) -> dict[bytes, bytes]:
        flat = ask(sentinel.url, "SENTINEL", "MASTER", self.service)
        return dict(zip(flat[::2], flat[1::2], strict=True))

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
