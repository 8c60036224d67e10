"""Every command of an operator, against a cluster and a primary with sentinels: only the URL differs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from program import Project, environment, until

pytestmark = [
    pytest.mark.parametrize("topology", ["sentinel", "cluster"], indirect=True),
    pytest.mark.processes,
    pytest.mark.timeout(300),  # some twenty commands, each of which takes half a second on a quiet machine
]


@pytest.fixture
def project(redis_url: str, app_name: str, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path, environment(redis_url, app_name, server_binary, tmp_path))
    yield made
    made.close()


def test_a_day_of_an_operator(project: Project, redis_url: str) -> None:
    def runnel(*arguments: str, status: int = 0, stdin: str = "") -> str:
        done = project.run(*arguments, stdin=stdin)
        assert done.returncode == status, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    quarantine = {"RUNNEL_EXCEPTION_POLICY": "quarantine", "PYTHONUNBUFFERED": "1"}
    worker = project.start(
        "worker", "shop:app", **quarantine
    )  # one process: several would write into each other's lines
    worker.says("worker started")
    assert redis_url in worker.stderr

    following = project.start("tail", "shop:orders", "--from", "earliest", "--follow", PYTHONUNBUFFERED="1")
    lines = "".join(f'{{"order_id": {n}}}\n' for n in range(40))
    runnel("sendmany", "shop:orders", "-", stdin=lines)
    runnel("send", "shop:orders", '{"order_id": 40, "note": "bad"}')
    worker.says("end ", times=40)
    worker.says("is quarantined")
    following.says("order_id", times=41)
    following.stop()

    seen = json.loads(runnel("status", "shop:app", "--json"))
    assert {one["name"] for one in seen["processors"]} == {"printer", "counter"}
    assert "printer" in runnel("lag", "shop:app")
    assert runnel("tail", "shop:orders", "-n", "3").count("order_id") == 3

    held = json.loads(runnel("quarantine", "list", "shop:app", "--json"))
    [partition] = [str(one["partition"]) for one in held]
    assert "a bad order" in runnel("quarantine", "show", "shop:printer", "--partition", partition)
    runnel("quarantine", "retry", "shop:printer", "--partition", partition)
    worker.says("is quarantined", times=2)
    runnel("quarantine", "skip", "shop:printer", "--partition", partition)
    assert "a bad order" in runnel("dead", "list", "shop:orders")
    assert "bad" in runnel("dead", "show", "shop:orders")
    runnel("dead", "replay", "shop:orders", "--execute")
    worker.says("is quarantined", times=3)

    runnel("processor", "pause", "shop:counter")
    counted = worker.stdout.count("count ")
    runnel("send", "shop:orders", '{"order_id": 41}')
    assert "paused" in runnel("status", "shop:app")
    assert worker.stdout.count("count ") == counted
    runnel("processor", "resume", "shop:counter")
    worker.says("count 41")
    runnel("processor", "reset", "shop:counter", "--start", "earliest", "--execute")
    worker.says("count 41", times=2)

    examined = runnel("doctor", "shop:app", status=1)
    assert "is quarantined in partition" in examined
    if "cluster" in redis_url:
        assert examined.count("keeps nothing on disk") == 3, "each primary is looked at"

    assert worker.stop() == 0
    until(lambda: "counter" in runnel("processor", "delete", "shop:counter", "--execute"))
    assert project.run("processor", "delete", "shop:counter", "--execute").returncode != 0
