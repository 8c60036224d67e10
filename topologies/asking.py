"""One command to one server, and waiting for what it says. Blocks for a moment, whoever runs the event loop."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from redis.connection import Connection
from redis.exceptions import RedisError

from runnel.server import EmbeddedServer

HOST = "127.0.0.1"

PATIENCE = 30.0
"""Seconds until servers must have found each other; it takes about 3."""


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


def fed_by(url: str) -> int:
    """How many replicas are connected to a server, and have all that it has."""
    return sum("state=online" in value for value in facts(url, "replication").values())


def port_of(server: EmbeddedServer) -> int:
    return int(server.url.rpartition(":")[2])


def start_all(servers: list[EmbeddedServer]) -> None:
    """Start servers at once; each takes some 50 ms, mostly of waiting."""
    with ThreadPoolExecutor(len(servers)) as pool:
        for outcome in [pool.submit(server.start) for server in servers]:
            outcome.result()
