"""Commands that check, as their users run them: ``doctor``, and what a worker says when it starts."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from program import Project, environment, until
from runnel._redis.link import Endpoint, Link
from runnel.server import EmbeddedServer

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def durable(server_binary: str | Path | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A server with nothing to find fault with."""
    directory = tmp_path_factory.mktemp("durable")
    with EmbeddedServer(binary=server_binary, data_dir=directory / "data", append_only=True) as running:
        yield running


@pytest.fixture
def project(
    durable: EmbeddedServer, app_name: str, server_binary: str | Path | None, tmp_path: Path
) -> Iterator[Project]:
    made = Project(tmp_path, environment(durable.url, app_name, server_binary, tmp_path))
    yield made
    made.close()


def configure(url: str, **values: str) -> None:
    """Change the configuration of a server of our own."""

    async def setting() -> None:
        link = Link(Endpoint(url))
        for name, value in values.items():
            await link.call("CONFIG", "SET", name.replace("_", "-"), value)
        await link.close()

    asyncio.run(setting())


@pytest.fixture
def evicting(durable: EmbeddedServer) -> Iterator[None]:
    """The server evicts keys, for as long as this lasts."""
    configure(durable.url, maxmemory_policy="allkeys-lru")
    yield
    configure(durable.url, maxmemory_policy="noeviction")


def test_where_all_is_well_the_doctor_says_so_with_status_0(project: Project) -> None:
    examined = project.run("doctor", "shop:app")
    assert (examined.returncode, examined.stdout, examined.stderr) == (0, "", "All is well.\n")
    assert json.loads(project.run("doctor", "shop:app", "--json").stdout) == []


def test_each_finding_has_a_cure_and_what_must_be_done_is_status_1(project: Project, evicting: None) -> None:
    project.send(1, 2)
    examined = project.run("doctor", "shop:app", RUNNEL_LOG_LEVLE="debug", RUNNEL_SESSION_TIMEOUT="120")
    assert examined.returncode == 1
    lines = examined.stdout.splitlines()
    assert '! No worker runs "printer", with 2 events waiting.' in lines
    assert (
        lines[lines.index('! No worker runs "printer", with 2 events waiting.') + 1] == "    Start one: runnel worker."
    )
    assert any(line.startswith("! The server's maxmemory-policy is allkeys-lru: as soon as a max") for line in lines)
    assert any('RUNNEL_LOG_LEVLE is no setting of Runnel. Did you mean "RUNNEL_LOG_LEVEL"?' in line for line in lines)
    assert any(line.startswith("- session_timeout is 120 s") for line in lines)
    assert examined.stderr == "4 to be mended, 1 to be known.\n"


def test_the_findings_as_json_say_what_is_urgent(project: Project, evicting: None) -> None:
    examined = project.run("doctor", "shop:app", "--json")
    assert examined.returncode == 1
    (found,) = json.loads(examined.stdout)
    assert set(found) == {"what", "cure", "urgent"}
    assert found["urgent"] is True
    assert "allkeys-lru" in found["what"]
    assert found["cure"].startswith("Set maxmemory-policy noeviction")


def test_what_is_only_to_be_known_is_status_0(project: Project) -> None:
    examined = project.run("doctor", "shop:app", RUNNEL_SESSION_TIMEOUT="120")
    assert examined.returncode == 0
    assert examined.stdout.startswith("- session_timeout is 120 s: a worker that freezes")
    assert examined.stderr == "Nothing has to be done.\n"


def test_the_doctor_finds_a_worker_that_is_silent_and_events_that_wait(project: Project) -> None:
    worker = project.start("worker", "shop:app", RUNNEL_SESSION_TIMEOUT="2")
    worker.says("partitions assigned", 2)
    assert project.run("doctor", "shop:app", RUNNEL_SESSION_TIMEOUT="2").returncode == 0
    other = project.run("doctor", "shop:app")
    assert "runs with session_timeout 2 s, this app says 10 s." in other.stdout
    worker.process.kill()
    worker.ends()
    project.send(1)
    examined = until(lambda: (one := project.run("doctor", "shop:app")).returncode == 1 and one)
    assert 'of "printer" has been silent for ' in examined.stdout
    assert "If it has crashed, start another one: it takes over." in examined.stdout
    shown = project.run("status", "shop:app").stdout
    assert "1 worker (1 silent)" in shown.splitlines()[0]
    assert shown.count(" is silent. It has partitions 0-3.") == 2


def test_a_stream_with_other_properties_is_a_finding(project: Project) -> None:
    project.send(1)
    source = (project.directory / "shop.py").read_text()
    project.write(shop=source.replace("partition_count=4", "partition_count=8"))
    examined = project.run("doctor", "shop:app")
    assert examined.returncode == 1
    assert '! Stream "orders" has 4 partitions in Redis, but this process says 8.' in examined.stdout


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_worker_warns_once_of_a_server_that_evicts_and_of_unknown_variables(
    project: Project, evicting: None, processes: str
) -> None:
    worker = project.run("worker", "shop:app", "--burst", "-p", processes, RUNNEL_LOG_LEVLE="debug")
    assert worker.returncode == 0
    assert worker.stderr.count("maxmemory-policy is allkeys-lru") == 1
    assert worker.stderr.count("the variable RUNNEL_LOG_LEVLE is no setting of Runnel.") == 1
    assert "keeps nothing on disk" not in worker.stderr


def test_a_worker_warns_of_a_server_that_keeps_nothing(project: Project, server: EmbeddedServer) -> None:
    worker = project.run("worker", "shop:app", "--burst", "--redis-url", server.url)
    assert worker.returncode == 0
    assert worker.stderr.count("The server keeps nothing on disk: a restart loses all events and positions.") == 1
