"""A Redis Cluster: which node has a key, and links that follow the keys from node to node.

After https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/. Every key is in one of 16,384 slots,
and every slot is served by one primary. A client keeps a table of that, and mends it when a node says otherwise:

* ``MOVED``: the slot is served by another node from now on. Nothing was carried out, so the command is repeated there.
* ``ASK``: the slot is on its way to another node, and this key is there already: the command is repeated there, once,
  behind ``ASKING``. The table stays.
* ``TRYAGAIN``, ``CLUSTERDOWN``, or no answer: the caller waits and tries again, as for any server that is away; before
  that, the table is asked for anew.
"""

import random
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis.asyncio.connection import AbstractConnection

from runnel._core.slots import slot_of
from runnel._redis.durability import PRIMARY, Confirmation
from runnel._redis.link import REPLY_TIMEOUT, Endpoint, Line, Link, Redirected
from runnel._redis.urls import bad_url, each_host, masked
from runnel.errors import RedisUnavailable

__all__ = ["ClusterEndpoint", "ClusterLink"]

PORT = 6379

TABLE_TIMEOUT = 1.0
"""Seconds for a node to be reached and to say who serves what: then the next one is asked."""

TABLE_AGE = 0.05
"""Seconds. So old a table must be to be asked for again, however many links have run into the same wall."""

MOST_REDIRECTIONS = 5
"""Of one command. More than two in a row only happen while nodes disagree; that passes."""


@dataclass(frozen=True, slots=True)
class Node:
    """The address of a node, as the cluster announces it."""

    host: str
    port: int


class ClusterEndpoint(Endpoint):
    """The table of who serves what. Used by all links and event loops of a process; it keeps no connection."""

    def __init__(self, url: str) -> None:
        """Arguments:
        url: ``redis+cluster://user:password@host:6379,host2:6379``, or ``rediss+cluster://`` for TLS, with any of
            the nodes; the others are found by them.

        Raises:
            ConfigurationError: that is not what ``url`` looks like.
        """
        urls, path = each_host(url, PORT)
        if path not in ([], ["0"]):
            raise bad_url(url, "names a database, and a Redis Cluster has only one: leave it out")
        super().__init__(urls[0])
        self.safe_url = masked(url)
        seeds = [Endpoint(one) for one in urls]
        self._seeds = [Node(seed._options["host"], seed._options["port"]) for seed in seeds]
        self._primaries: dict[int, Node] = {}
        self._serving: list[Node] = []
        self._replicas: list[Node] = []
        self._looked_at = -TABLE_AGE
        self._doubted = True

    def link(self, *, identify: bool = False) -> Link:
        """A link to all nodes."""
        return ClusterLink(self, identify=identify)

    def together(self, keys: Iterable[str]) -> list[list[str]]:
        """Keys by slot: those of one slot move together."""
        by_slot: dict[int, list[str]] = {}
        for key in keys:
            by_slot.setdefault(slot_of(key), []).append(key)
        return list(by_slot.values())

    async def connect_to(self, key: str) -> AbstractConnection:
        """A connection to the primary that serves a key or a channel.

        The node is asked for its role: a replica takes subscriptions without a word, and nobody counts them there.
        After a fail-over, nodes that have not heard of it yet lead to the old primary.

        Raises:
            RedisUnavailable: nobody serves it now.
        """
        connection = await self.at_node(await self.node_of(slot_of(key))).connect()
        try:
            await connection.send_packed_command(connection.pack_command("ROLE"), check_health=False)
            role = (await connection.read_response())[0].decode()
            if role != "master":
                self.doubt()
                raise RedisUnavailable(f"A node of {self.safe_url} is to be a primary and says that it is a {role}.")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    async def primaries(self) -> list[Endpoint]:
        """All nodes that serve slots.

        Raises:
            RedisUnavailable: no node can be asked.
        """
        if self._doubted:
            await self._look()
        return [self.at_node(node) for node in self._serving]

    def at_node(self, node: Node) -> Endpoint:
        """A node by itself."""
        return self.toward(node.host, node.port)

    def doubt(self) -> None:
        """Ask for the table before it is used the next time."""
        self._doubted = True

    def moved(self, slot: int, node: Node) -> None:
        """A node has said who serves a slot now."""
        self._primaries[slot] = node

    async def node_of(self, slot: int) -> Node:
        """The primary that serves a slot.

        Raises:
            RedisUnavailable: nobody does now, or no node can be asked.
        """
        if self._doubted and time.monotonic() - self._looked_at >= TABLE_AGE:
            await self._look()
        node = self._primaries.get(slot)
        if node is None:
            self.doubt()
            raise RedisUnavailable(f"No node of {self.safe_url} serves slot {slot} now.")
        return node

    async def _look(self) -> None:
        """Ask for the table: known nodes first, in any order, then those of the URL."""
        known = [*self._serving, *self._replicas]
        reasons = []
        for node in dict.fromkeys([*random.sample(known, len(known)), *self._seeds]):
            endpoint = self.at_node(node)
            link = Link(endpoint)
            try:
                shards = await link.call("CLUSTER", "SLOTS", timeout=TABLE_TIMEOUT)
            except RedisUnavailable as error:
                reasons.append(error.what)
                continue
            finally:
                await link.close()
            primaries: dict[int, Node] = {}
            replicas = []
            for first, last, *nodes in shards:
                # A node that does not know its own address leaves it out: it is where we have asked.
                found = [Node((host or b"").decode() or node.host, port) for host, port, *_ in nodes]
                primaries.update(dict.fromkeys(range(first, last + 1), found[0]))
                replicas += found[1:]
            self._primaries, self._replicas = primaries, replicas
            self._serving = sorted(set(primaries.values()), key=lambda node: (node.host, node.port))
            self._looked_at, self._doubted = time.monotonic(), False
            return
        raise RedisUnavailable(
            f"No node of {self.safe_url} can be reached: {' '.join(dict.fromkeys(reasons))}",
            "Compare the URL with the addresses that the nodes announce (CLUSTER SLOTS).",
        )


class ClusterLink(Link):
    """One connection to each node that is needed, one command at a time on each.

    Attributes:
        client_id, reply_size: of the connection that was used last.
    """

    def __init__(self, endpoint: ClusterEndpoint, *, identify: bool = False) -> None:
        """Arguments: as for :class:`Link`."""
        super().__init__(endpoint, identify=identify)
        self._cluster = endpoint
        self._links: dict[Node, Link] = {}
        self._last: Link | None = None

    def at(self, key: str) -> Line:
        """The line to whoever serves a key."""
        return _Route(self, slot_of(key))

    async def call(self, *command: Any, timeout: float = REPLY_TIMEOUT, confirm: Confirmation = PRIMARY) -> Any:
        """A command without a key: whoever serves slot 0 answers it."""
        return await self.call_at(0, command, timeout, confirm)

    async def call_at(self, slot: int, command: tuple[Any, ...], timeout: float, confirm: Confirmation) -> Any:
        """Send a command to whoever serves a slot, and follow where it is sent on to.

        Raises:
            As :meth:`Link.call`.
        """
        cluster = self._cluster
        for _ in range(MOST_REDIRECTIONS):
            node = await cluster.node_of(slot)
            link = self._last = self._link_to(node)
            try:
                return await link.call(*command, timeout=timeout, confirm=confirm)
            except Redirected as redirected:
                target = Node(redirected.host or node.host, redirected.port)
                if redirected.asking:
                    return await self._ask_at(target, command, timeout, confirm)
                cluster.moved(slot, target)
            except RedisUnavailable:
                cluster.doubt()
                raise
        cluster.doubt()
        raise RedisUnavailable(f"The nodes of {cluster.safe_url} do not agree on who serves slot {slot} now.")

    async def _ask_at(self, node: Node, command: tuple[Any, ...], timeout: float, confirm: Confirmation) -> Any:
        """Send a command to a node that takes a slot over, on a connection of its own: the two must not be parted."""
        link = Link(self._cluster.at_node(node))
        try:
            await link.call("ASKING", timeout=timeout)
            return await link.call(*command, timeout=timeout, confirm=confirm)
        except Redirected as redirected:
            raise RedisUnavailable(f"A slot is on its way between nodes of {self._cluster.safe_url}.") from redirected
        finally:
            await link.close()

    def _link_to(self, node: Node) -> Link:
        link = self._links.get(node)
        if link is None:
            link = self._links[node] = Link(self._cluster.at_node(node), identify=self._identify)
        return link

    @property
    def ready(self) -> bool:
        """Which connection a command needs is known only by its key."""
        return False

    @property
    def connection(self) -> object:
        """The connection that was used last."""
        return None if self._last is None else self._last.connection

    @property
    def client_id(self) -> int | None:
        """The number of the connection that was used last."""
        return None if self._last is None else self._last.client_id

    @property
    def reply_size(self) -> int:
        """Bytes of the last answer."""
        return 0 if self._last is None else self._last.reply_size

    async def close(self) -> None:
        """Disconnect from all nodes."""
        links, self._links, self._last = self._links, {}, None
        try:
            for link in links.values():
                await link.close()
        except BaseException:  # cancelled: nobody else knows of those that are left
            for link in links.values():
                await link.drop()
            raise


@dataclass(frozen=True, slots=True)
class _Route:
    """The line to whoever serves a slot."""

    link: ClusterLink
    slot: int

    async def call(self, *command: Any, timeout: float = REPLY_TIMEOUT, confirm: Confirmation = PRIMARY) -> Any:
        return await self.link.call_at(self.slot, command, timeout, confirm)
