"""``runnel stream``, as its users run it."""

import asyncio
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from program import Project, environment, until
from runnel._redis.link import Endpoint
from runnel.server import EmbeddedServer


@pytest.fixture
def project(redis_url: str, app_name: str, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path, environment(redis_url, app_name, server_binary, tmp_path))
    yield made
    made.close()


def test_the_command_explains_itself(project: Project) -> None:
    shown = project.run("stream", "migrate", "--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert [w for w in ("--partitions", "--no-wait", "--purge", "--to", "--execute") if w not in shown.stdout] == []


def test_what_does_not_fit_is_an_error_in_words(project: Project) -> None:
    unused = project.run("stream", "migrate", "shop:orders")
    assert unused.returncode == 1
    assert 'Nothing is stored of "orders"' in unused.stderr
    project.send(1)
    for option, value, status, says in (
        ("--partitions", "0", 4, "A stream has 1 to 4096 partitions, not 0."),
        ("--slot-groups", "9", 4, "4 partitions can be in 1 to 4 slot groups, not 9."),
        ("--to", "redis://127.0.0.1:1", 3, "Cannot reach redis://127.0.0.1:1 (connection refused)"),
    ):
        refused = project.run("stream", "migrate", "shop:orders", option, value, "--execute")
        assert refused.returncode == status
        assert says in refused.stderr


def test_a_stream_is_described_for_people_and_for_programs(project: Project) -> None:
    ids = project.send(1, 2, 3, 4, 5)
    shown = project.run("stream", "describe", "shop:orders")
    assert shown.returncode == 0
    assert "orders   hasher xxh64, format json" in shown.stdout
    assert "generation 0   4 partitions in 1 slot group; producers append here" in shown.stdout
    described = json.loads(project.run("stream", "describe", "shop:orders", "--json").stdout)
    [generation] = described["generations"]
    assert (generation["partition_count"], generation["slot_groups"], generation["in_use"]) == (4, 1, True)
    assert sum(partition["entries"] for partition in generation["partitions"]) == 5
    assert {partition["last"] for partition in generation["partitions"]} - {None} <= set(ids)


def test_a_stream_is_migrated_while_a_worker_runs(project: Project) -> None:
    worker = project.start("worker", "shop:app")
    project.send(*range(1, 21))
    worker.says("end", 20)
    worker.says("count", 20)

    planned = project.run("stream", "migrate", "shop:orders", "--partitions", "7")
    assert planned.returncode == 0
    assert '"orders": generation 0, 4 partitions in 1 slot group -> generation 1, 7 partitions' in planned.stdout
    assert "Nothing was changed. Add --execute to do it." in planned.stderr

    done = project.run("stream", "migrate", "shop:orders", "--partitions", "7", "--purge", "--execute")
    assert done.returncode == 0, done.stderr
    assert "All processors have gone over." in done.stderr
    assert "Removed: the partitions of generation 0." in done.stderr
    assert "say partition_count=7 in the code" in done.stderr

    project.send(*range(21, 41))  # by code that still says 4
    worker.says("end", 40)
    worker.says("count", 40)
    described = json.loads(project.run("stream", "describe", "shop:orders", "--json").stdout)
    [generation] = described["generations"]
    assert (generation["generation"], generation["partition_count"]) == (1, 7)
    assert described["processors"] == {"counter": 1, "printer": 1}
    assert worker.process.poll() is None

    again = project.run("stream", "migrate", "shop:orders", "--partitions", "7", "--json", "--execute")
    assert again.returncode == 0
    assert json.loads(again.stdout)["before"] == json.loads(again.stdout)["after"]
    assert worker.stop() == 0


def test_a_migration_says_what_it_waits_for_and_can_be_left_alone(project: Project) -> None:
    project.send(*range(1, 21))
    worker = project.start("worker", "shop:app")
    worker.says("end", 20)
    worker.says("count", 20)
    assert worker.stop() == 0
    project.send(21, 22)
    migration = project.start("stream", "migrate", "shop:orders", "--partitions", "7", "--execute")
    migration.says('Waiting: "counter" has 2 events to process before that, and nobody runs it; "printer" has')
    migration.process.send_signal(signal.SIGINT)
    migration.says("It goes on without this command")
    assert migration.process.wait() == 130
    left = project.run("stream", "migrate", "shop:orders", "--partitions", "7", "--execute", "--no-wait", "--purge")
    assert left.returncode == 0
    assert "Nothing was removed." in left.stderr
    worker = project.start("worker", "shop:app")
    worker.says("end", 2)
    until(lambda: "generation=1" in worker.stderr, lambda: worker.stderr)
    removed = project.run("stream", "migrate", "shop:orders", "--purge", "--execute")
    assert "Removed: the partitions of generation 0." in removed.stderr


async def _add_user(url: str, name: str, password: str) -> None:
    link = Endpoint(url).link()
    await link.call("ACL", "SETUSER", name, "on", f">{password}", "~*", "&*", "+@all")
    await link.close()


def test_a_stream_is_moved_to_another_server_with_its_password_kept_out_of_sight(
    project: Project, server_binary: str | Path | None
) -> None:
    with EmbeddedServer(binary=server_binary) as other:
        asyncio.run(_add_user(other.url, "mover", "secret"))
        to = other.url.replace("redis://", "redis://mover:secret@")
        project.send(1, 2, 3)
        refused = project.run("stream", "migrate", "shop:orders", "--to", to, "--partitions", "7")
        assert refused.returncode == 2
        assert "divide it anew then" in refused.stderr
        done = project.run("stream", "migrate", "shop:orders", "--to", to, "--execute")
        assert (done.returncode, done.stdout.count("3 events")) == (0, 1), done.stderr
        assert "orders: moved" in done.stderr
        late = project.run("send", "shop:orders", '{"order_id": 4}')
        assert late.returncode == 4
        assert "was moved to redis://mover:***@" in late.stderr
        described = project.run("stream", "describe", "shop:orders")
        assert "moved to redis://mover:***@" in described.stdout
        stopped = project.run("worker", "shop:app")
        assert stopped.returncode == 4
        assert "was moved to redis://mover:***@" in stopped.stderr
        worker = project.start("worker", "shop:app", RUNNEL_REDIS_URL=to)
        worker.says("end", 3)
        for one in (done, late, described, stopped):
            assert "secret" not in one.stdout + one.stderr
        assert worker.stop() == 0
