"""Commands that mend, as their users run them, while a worker runs.

One worker serves the whole module; each test has a stream and a processor of its own.
"""

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import inspecting
from program import Project, environment, until
from runnel import App, Record
from runnel.admin import key_of, list_quarantines, skip_quarantine, tail_of
from runnel.server import EmbeddedServer
from runnel.streams import Stream

pytestmark = pytest.mark.processes

APP = "mending"
NAMES = ("moving", "pausing", "failing", "skipping", "replaying", "purging", "losing", "deleting")

SOURCE = f"""
import asyncio
from pathlib import Path

from runnel import App, ExceptionPolicy, Record

app = App(name="{APP}", heartbeat_interval=0.2, exception_policy=ExceptionPolicy.QUARANTINE)


class Step(Record):
    key: int
    n: int
    note: str = ""


def declare(name):
    stream = app.stream(name, record=Step, partition_by="key", partition_count=2)

    @app.processor(stream, name=name)
    async def processor(events):
        async for step in events.records():
            print(name, "begin", step.key, step.n)
            while step.note == "slow" and not Path(name + ".gate").exists():
                await asyncio.sleep(0.01)
            if step.note == "bad" and not Path(name + ".mended").exists():
                raise ValueError(f"step {{step.n}} is bad")
            print(name, "end", step.key, step.n)

    return stream, processor


""" + "".join(f"{name}s, {name} = declare('{name}')\n" for name in NAMES)

KILLER = """
import os
import signal

from runnel._redis import queries
from steps import app, replayings


async def delete_entries(*_):
    os.kill(os.getpid(), signal.SIGKILL)


queries.delete_entries = delete_entries
"""
"""The command is killed between what it sends and what it removes."""


class Step(Record):
    """The same as in ``steps.py``."""

    key: int
    n: int
    note: str = ""


class Scene:
    """A worker, and what a test does to the stream of its own."""

    def __init__(self, project: Project) -> None:
        self.project = project
        project.write(steps=SOURCE, killer=KILLER)
        self.worker = project.start("worker", "steps:app")
        self.worker.says("partitions assigned", len(NAMES))
        _, stream = self.declared("moving")
        by_partition = {stream.partition_of(Step(key=key, n=0)): key for key in range(20)}
        self.keys = (by_partition[0], by_partition[1])
        """A key of each partition."""

    def declared(self, name: str) -> tuple[App, Stream[Step]]:
        """The same as in ``steps.py``."""
        app = App(APP, redis_url=self.project.environment["RUNNEL_REDIS_URL"])
        stream = app.stream(name, record=Step, partition_by="key", partition_count=2)

        @app.processor(stream, name=name)
        async def _(events: object) -> None: ...

        return app, stream

    def send(self, name: str, *numbers: int, partition: int = 0, note: str = "") -> list[str]:
        """Send steps. Returns their ids."""

        async def sending() -> list[str]:
            app, stream = self.declared(name)
            async with app:
                return await stream.send(*(Step(key=self.keys[partition], n=n, note=note) for n in numbers))

        return asyncio.run(sending())

    def sent(self, name: str) -> list[int]:
        """The numbers of the steps in the log of partition 0."""

        async def looking() -> list[int]:
            app, stream = self.declared(name)
            return [e.record.n async for e in tail_of(app, stream, number=None, partitions=[0]) if key_of(stream, e)]

        return asyncio.run(looking())

    def handled(self, name: str, what: str = "end", partition: int = 0) -> list[int]:
        """The numbers of the steps that the worker has begun, or ended, in a partition."""
        found = re.findall(rf"^{name} {what} {self.keys[partition]} (\d+)$", self.worker.stdout, re.MULTILINE)
        return [int(n) for n in found]

    def ends(self, name: str, *numbers: int, partition: int = 0) -> None:
        """Wait until the worker has ended these, in this order, and nothing else."""
        until(lambda: len(self.handled(name, partition=partition)) >= len(numbers), lambda: self.worker.stdout)
        assert self.handled(name, partition=partition) == list(numbers)

    def does(self, *arguments: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
        """Run a command that ends with this status."""
        ended = self.project.run(*arguments)
        assert ended.returncode == status, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    def data(self, *arguments: str) -> Any:
        """What a command prints with --json."""
        return json.loads(self.does(*arguments, "--json").stdout)

    def logged(self, event: str, name: str) -> bool:
        """Whether the worker has logged something of a processor."""
        return any(event in line and f"processor={name} " in line for line in self.worker.stderr.splitlines())

    def quarantined(self, name: str, times: int = 1) -> None:
        """Wait until it has failed so many times, and that is to be seen."""
        event = "processing failed; the partition is quarantined"
        until(lambda: sum(event in s and f"={name} " in s for s in self.worker.stderr.splitlines()) >= times)
        until(lambda: asyncio.run(list_quarantines(self.declared(name)[0], name)))


@pytest.fixture(scope="module")
def scene(
    server: EmbeddedServer, server_binary: str | Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("mending")
    project = Project(directory, environment(server.url, APP, server_binary, directory))
    try:
        yield Scene(project)
    finally:
        project.close()


# processor reset


def test_a_running_worker_takes_a_reset_over_and_processes_nothing_of_what_it_had_read(scene: Scene) -> None:
    ids = scene.send("moving", 0, note="slow") + scene.send("moving", 1, 2, 3, 4)
    scene.send("moving", 0, partition=1)
    scene.worker.says("moving begin")
    scene.ends("moving", 0, partition=1)
    reset = ("processor", "reset", "steps:moving", "--partition", "0", "--start", ids[3])
    (planned,) = scene.data(*reset)
    assert planned == {
        "partition": 0,
        "position": "0-0",
        "offset": ids[2],
        "count": 3,
        "lag": 5,
        "new_lag": 2,
        "generation": 0,
    }
    assert scene.does(*reset).stderr.startswith("Nothing was changed. Add --execute to do it: 2 events")
    done = scene.does(*reset, "--execute")
    assert done.stderr == 'Done: "moving" goes on from there, with 2 events to process.\n'
    assert done.stdout.split()[-5:] == ["0", "0-0", ids[2], "5", "2"]
    until(lambda: scene.logged("position was reset", "moving"), lambda: scene.worker.stderr)
    (scene.project.directory / "moving.gate").touch()
    scene.ends("moving", 0, 3, 4)
    assert scene.handled("moving", "begin") == [0, 3, 4]
    scene.does("processor", "reset", "steps:moving", "--shift-by", "-2", "--partition", "0", "--execute")
    scene.ends("moving", 0, 3, 4, 3, 4)
    scene.does("processor", "reset", "steps:moving", "--to-earliest", "--execute")
    scene.ends("moving", 0, 3, 4, 3, 4, 0, 1, 2, 3, 4)
    scene.ends("moving", 0, 0, partition=1)


# processor pause and resume


def test_a_pause_stops_a_running_worker_until_it_is_resumed(scene: Scene) -> None:
    scene.send("pausing", 0)
    scene.ends("pausing", 0)
    paused = scene.does("processor", "pause", "steps:pausing")
    assert paused.stderr == 'Paused: "pausing" goes on with `runnel processor resume steps:pausing`.\n'
    assert scene.does("processor", "pause", "steps:pausing").stderr == '"pausing" was paused already.\n'
    until(lambda: scene.logged("paused", "pausing"), lambda: scene.worker.stderr)
    scene.send("pausing", 1)
    scene.send("failing", 100)  # another processor of the same worker goes on
    scene.ends("failing", 100)
    shown = scene.does("status", "steps:app").stdout
    assert re.search(r"^pausing +pausing +paused +2/2 +1 ", shown, re.MULTILINE)
    assert re.search(r'! "pausing" was paused [\d.]+ s ago by \S+\.$', shown, re.MULTILINE)
    lag = scene.does("lag", "steps:app").stdout
    assert len(re.findall(r"^pausing .* paused ", lag, re.MULTILINE)) == 2
    assert scene.handled("pausing", "begin") == [0]
    assert scene.does("processor", "resume", "steps:pausing").stderr == 'Resumed: "pausing" goes on.\n'
    scene.ends("pausing", 0, 1)
    assert scene.does("processor", "resume", "steps:pausing").stderr == '"pausing" was not paused.\n'


# quarantine


def test_a_quarantine_is_shown_and_retried_until_it_succeeds(scene: Scene) -> None:
    assert scene.does("quarantine", "show", "steps:failing").stderr == "Nothing is quarantined there.\n"
    before = scene.handled("failing")
    (bad,) = scene.send("failing", 7, note="bad")
    scene.send("failing", 8)
    scene.quarantined("failing")
    listed = scene.does("quarantine", "list", "steps:app").stdout
    assert re.search(rf"^failing +0 +\S+ +{bad} +2 +ValueError: step 7 is bad$", listed, re.MULTILINE)
    (found,) = [one for one in scene.data("quarantine", "list", "steps:app") if one["processor"] == "failing"]
    assert (found["partition"], found["events"], found["lag"]) == (0, [bad], 2)
    assert found["owner"] in scene.worker.stderr
    shown = scene.does("quarantine", "show", "steps:failing").stdout
    assert shown.startswith("failing, partition 0, since ")
    assert f'{bad}  {{"key":{scene.keys[0]},"n":7,"note":"bad"}}' in shown
    assert 'steps.py", line ' in shown
    assert shown.endswith("ValueError: step 7 is bad\n")
    (detailed,) = scene.data("quarantine", "show", "steps:failing", "--partition", "0")
    assert detailed["records"][0]["record"]["n"] == 7
    assert detailed["traceback"].startswith("Traceback (most recent call last):\n")

    watching = scene.project.start("quarantine", "list", "steps:app", "--watch", "--json")
    until(lambda: watching.stdout.count("\n") >= 2, lambda: watching.stderr)
    assert watching.stop(signal.SIGINT) == 130
    assert all(json.loads(line) for line in watching.stdout.splitlines())

    retried = scene.does("quarantine", "retry", "steps:failing")
    assert retried.stderr == f'Retrying: partition 0 of "failing" goes on with {bad}.\n'
    scene.quarantined("failing", 2)
    (scene.project.directory / "failing.mended").touch()
    scene.does("quarantine", "retry", "steps:failing", "--partition", "0")
    scene.ends("failing", *before, 7, 8)
    assert scene.does("quarantine", "retry", "steps:failing").stderr == "Nothing is quarantined there.\n"
    again = scene.does("quarantine", "retry", "steps:failing", "--partition", "0", status=1)
    assert '"failing" is not quarantined in partition 0.' in again.stderr


def test_a_skipped_event_is_a_dead_letter_and_the_worker_goes_on_behind_it(scene: Scene) -> None:
    (bad,) = scene.send("skipping", 1, note="bad")
    scene.send("skipping", 2)
    scene.quarantined("skipping")
    missing = scene.does("quarantine", "skip", "steps:skipping", status=2)
    assert "--partition" in missing.stderr
    skipped = scene.does("quarantine", "skip", "steps:skipping", "--partition", "0")
    assert skipped.stderr == 'Skipped in partition 0: 1 event moved to "skipping.dead".\n'
    scene.ends("skipping", 2)
    assert scene.handled("skipping", "begin") == [1, 2]
    letter, source, processor, error = re.split(
        "  +", scene.does("dead", "list", "steps:skippings").stdout.splitlines()[1]
    )
    assert (source, processor, error) == (f"skipping/0/{bad}", "skipping", "ValueError: step 1 is bad")
    (found,) = scene.data("dead", "list", "steps:skippings")
    assert (found["letter"], found["source"], found["processor"]) == (letter, source, processor)
    assert found["event"]["record"] == {"key": scene.keys[0], "n": 1, "note": "bad"}
    shown = scene.does("dead", "show", "steps:skippings", letter).stdout
    assert shown.startswith(f"{letter} of skipping.dead\n")
    assert f"from       {source}\n" in shown
    assert '"n":1' in shown
    unknown = scene.does("dead", "show", "steps:skippings", "0/1-1", status=1)
    assert 'There is no dead letter "0/1-1". `runnel dead list` shows those there are.' in unknown.stderr


# dead letters


def letters(scene: Scene, name: str, *numbers: int) -> list[str]:
    """Make dead letters of steps. Returns their names."""
    for times, n in enumerate(numbers, 1):
        scene.send(name, n, note="bad")
        scene.quarantined(name, times)
        asyncio.run(skip_quarantine(scene.declared(name)[0], name, [0]))
    found = scene.data("dead", "list", f"steps:{name}s")
    assert [one["event"]["record"]["n"] for one in found] == list(numbers)
    return [one["letter"] for one in found]


def test_a_replay_that_is_killed_and_done_again_sends_every_letter_once(scene: Scene) -> None:
    first, second = letters(scene, "replaying", 1, 2)
    scene.send("replaying", 3)
    scene.ends("replaying", 3)
    planned = scene.does("dead", "replay", "steps:replayings")
    assert [line.split()[0] for line in planned.stdout.splitlines()] == ["letter", first, second]
    assert planned.stderr.endswith("2 events will be sent again, and will come after later events of the same key.\n")
    (scene.project.directory / "replaying.mended").touch()
    for _ in range(2):  # killed twice at the same place
        killed = scene.project.run("dead", "replay", "killer:replayings", "--execute")
        assert killed.returncode == -signal.SIGKILL
        assert [one["letter"] for one in scene.data("dead", "list", "steps:replayings")] == [first, second]
        assert scene.sent("replaying") == [1, 2, 3, 1]
    done = scene.does("dead", "replay", "steps:replayings", "--execute")
    assert done.stderr == "Done: 2 events replayed, behind later events of the same key.\n"
    assert scene.sent("replaying") == [1, 2, 3, 1, 2]
    scene.ends("replaying", 3, 1, 2)
    assert scene.does("dead", "list", "steps:replayings").stderr == '"replaying" has no dead letters.\n'
    assert scene.does("dead", "replay", "steps:replayings", "--execute").stderr == '"replaying" has no dead letters.\n'


def test_dead_letters_are_purged_by_name_and_only_when_it_is_to_be_executed(scene: Scene) -> None:
    first, second = letters(scene, "purging", 1, 2)
    shown = scene.does("dead", "purge", "steps:purgings", first)
    assert shown.stderr == "Nothing was changed. Add --execute to do it: 1 dead letter will be removed.\n"
    done = scene.does("dead", "purge", "steps:purgings", first, "--execute")
    assert (done.stdout, done.stderr) == ("", "Done: 1 dead letter removed.\n")
    assert [one["letter"] for one in scene.data("dead", "list", "steps:purgings")] == [second]
    scene.does("dead", "purge", "steps:purgings", first, "--execute", status=1)
    (purged,) = scene.data("dead", "purge", "steps:purgings", "--execute")
    assert (purged["letter"], purged["to"], purged["obstacle"]) == (second, None, "")
    assert scene.sent("purging") == [1, 2], "what it was is still where it was"


# Losses


def test_losses_are_shown_until_they_are_acknowledged(scene: Scene) -> None:
    assert scene.does("processor", "acknowledge", "steps:losing").stderr == '"losing" has lost nothing.\n'
    scene.does("processor", "pause", "steps:losing")
    until(lambda: scene.logged("paused", "losing"), lambda: scene.worker.stderr)
    ids = scene.send("losing", 0, 1, 2, 3)

    async def trim() -> None:
        app, stream = scene.declared("losing")
        async with inspecting(app) as redis:
            await redis.link.call("XTRIM", stream.keys.log(0), "MINID", ids[3])

    asyncio.run(trim())
    scene.does("processor", "resume", "steps:losing")
    scene.ends("losing", 3)
    until(lambda: scene.logged("events were removed before they were processed", "losing"))
    shown = '"losing" has lost 3 events of partition 0'
    assert f"! {shown} to trimming or deletion. See runnel doctor." in scene.does("status", "steps:app").stdout
    examined = scene.project.run("doctor", "steps:app").stdout
    assert f"- {shown}" in examined
    assert "When you know why: runnel processor acknowledge steps:losing" in examined
    known = scene.does("processor", "acknowledge", "steps:losing")
    assert known.stdout.split()[-3:] == ["0", "3", "0"]
    assert known.stderr == 'Acknowledged: "losing" counts from zero again.\n'
    assert scene.data("processor", "acknowledge", "steps:losing") == []
    assert "losing" not in scene.project.run("doctor", "steps:app").stdout


# processor delete


def test_a_processor_is_deleted_when_nobody_runs_it_also_if_the_app_has_it_no_more(scene: Scene) -> None:
    scene.send("deleting", 1)
    scene.ends("deleting", 1)
    used = scene.does("processor", "delete", "steps:deleting", "--execute", status=1)
    assert '"deleting" is run by ' in used.stderr
    assert "Stop its workers first" in used.stderr
    assert "Stop its workers first" in scene.does("processor", "delete", "steps:deleting", status=1).stderr
    scene.project.write(
        former="from runnel import App, Record\n\n\nclass Step(Record):\n    key: int\n\n\n"
        'app = App(name="former")\nsteps = app.stream("steps", record=Step, partition_by="key", partition_count=2)\n',
        current="from former import app, steps\n\n\n@app.processor(steps)\nasync def old(events):\n"
        "    async for event in events:\n        pass\n",
    )
    scene.does("send", "former:steps", '{"key": 1}')
    scene.does("worker", "current:app", "--burst")
    scene.does("send", "former:steps", '{"key": 1}')
    examined = scene.project.run("doctor", "former:app").stdout
    assert '"old" is registered on "steps", but the app does not have it' in examined
    near = scene.does("processor", "delete", "former:odl", status=4)
    assert 'Did you mean "old"?' in near.stderr
    shown = scene.does("processor", "delete", "former:old")
    assert shown.stdout == '"old" on "steps", 1 event not processed, not in the app\n'
    assert shown.stderr == "Nothing was changed. Add --execute to do it.\n"
    assert scene.does("processor", "delete", "former:old", "--execute").stderr == 'Done: "old" is forgotten.\n'
    gone = scene.does("processor", "delete", "current:old", status=4)
    assert 'Redis knows nothing of "old"' in gone.stderr


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["processor", "pause", "steps:pausign"], 'Did you mean "pausing"?'),
        (["processor", "resume", "steps:pausings"], "is a Stream; `runnel processor resume` needs a processor"),
        (["processor", "acknowledge", "steps:losing", "--partition", "2"], "has the partitions 0 to 1, but not 2"),
        (["processor", "reset", "steps:moving", "--by-duration", "1x"], "Durations look like 90s, 5m, 1h30m or 2d."),
        (["processor", "reset", "steps:moving", "--to-earliest", "--to-latest"], "Only one place at a time."),
        (["quarantine", "show", "steps:failign"], 'Did you mean "failing"?'),
        (["quarantine", "retry", "steps:failing", "--partition", "9"], "but not 9"),
        (["dead", "list", "steps:purging"], "`runnel dead list` needs a Stream."),
        (["dead", "lsit", "steps:purgings"], "Did you mean 'list'"),
    ],
)
def test_wrong_usage_is_explained(scene: Scene, arguments: list[str], message: str) -> None:
    ended = scene.does(*arguments, status=2)
    assert ended.stdout == ""
    assert message in " ".join(ended.stderr.split())
