"""Commands that look, as their users run them: real processes beside a real worker, and what they print.

One worker serves the whole module: nothing here changes what it does.
"""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from program import PATIENCE, Order, Project, Running, environment, until
from runnel import App
from runnel.server import EmbeddedServer

pytestmark = pytest.mark.processes

APP = "looking"
GOOD, BAD, SLOW = 24, 1, 2
"""How many orders go through, and the ids of one that fails and of one that takes long. They are in two partitions."""


class Scene:
    """A worker with one partition in quarantine, one with an event that takes long, and two that are done."""

    def __init__(self, project: Project) -> None:
        self.project = project
        app = App(APP)
        orders = app.stream("orders", record=Order, partition_by="order_id", partition_count=4)
        self.bad, self.slow = (orders.partition_of(Order(order_id=n)) for n in (BAD, SLOW))
        assert self.bad != self.slow
        self.worker = project.start("worker", "shop:app", RUNNEL_EXCEPTION_POLICY="quarantine")
        self.worker.says("partitions assigned", 2)
        self.good_ids = project.send(*range(GOOD))
        (self.bad_id,) = project.send(BAD, note="bad")
        (self.slow_id,) = project.send(SLOW, note="slow")
        self.worker.says("processing failed; the partition is quarantined")
        self.worker.says(f"begin {SLOW}", 2)
        until(lambda: project.waiting("counter") == 0)
        until(lambda: project.waiting("printer") == 2)
        self.name = re.findall(r"worker=(\S+)", self.worker.stderr)[0]


@pytest.fixture(scope="module")
def scene(
    server: EmbeddedServer, server_binary: str | Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("looking")
    project = Project(directory, environment(server.url, APP, server_binary, directory))
    try:
        yield Scene(project)
    finally:
        (directory / "gate").touch()
        project.close()


def data(ended: "subprocess.CompletedProcess[str]") -> Any:
    """What a command has printed with --json, and nothing else."""
    assert (ended.returncode, ended.stderr) == (0, "")
    return json.loads(ended.stdout)


def lines_of(running: Running, number: int) -> list[str]:
    """The first lines of what goes on being printed; then it is ended by Ctrl-C."""
    until(lambda: running.stdout.count("\n") >= number, lambda: running.stdout + running.stderr)
    assert running.stop(signal.SIGINT) == 130
    assert "Traceback" not in running.stderr
    return running.stdout.splitlines()


def row(text: str, *beginning: str) -> list[str]:
    """The cells of the line of a table that begins with these."""
    (found,) = (line for line in text.splitlines() if line.split()[: len(beginning)] == list(beginning))
    return re.split(r"  +", found.strip())


# status


def test_the_status_shows_what_runs_and_what_needs_attention(scene: Scene) -> None:
    def slow() -> str:
        shown = scene.project.run("status", "shop:app")
        assert (shown.returncode, shown.stderr) == (0, "")
        return shown.stdout if scene.slow_id in shown.stdout else ""  # a heartbeat notes it after a second

    text = until(slow)
    assert text.startswith(f'app "{APP}"   ')
    assert "   1 worker   " in text.splitlines()[0]
    assert row(text, "orders") == ["orders", "4", str(GOOD + 2)]
    assert row(text, "printer", "orders")[:5] == ["printer", "orders", "1 quarantined", "4/4", "2"]
    assert row(text, "counter", "orders")[:6] == ["counter", "orders", "running", "4/4", "0", "-"]
    assert row(text, scene.name, "printer")[:3] == [scene.name, "printer", "alive"]
    assert row(text, scene.name, "printer")[-1] == "0-3"
    assert f'! "printer" is quarantined in partition {scene.bad}. See runnel quarantine list.' in text
    assert f'! "printer" partition {scene.slow}: the event {scene.slow_id} has been in progress for ' in text
    assert text.count("!") == 2


def test_the_status_as_json_has_all_of_it(scene: Scene) -> None:
    found = data(scene.project.run("status", "shop:app", "--json"))
    assert found["app"] == APP
    assert found["streams"] == [{"name": "orders", "partition_count": 4, "entries": GOOD + 2, "moved": ""}]
    printer, counter = found["processors"]
    assert (printer["name"], printer["lag"], counter["name"], counter["lag"]) == ("printer", 2, "counter", 0)
    assert (printer["paused"], printer["declared"], printer["lost"], printer["rollbacks"]) == (None, True, 0, 0)
    assert set(printer["rate"]) == {"sent", "processed"}
    (member,) = printer["members"]
    assert (member["name"], member["state"], member["partitions"]) == (scene.name, "alive", [0, 1, 2, 3])
    by_number = {partition["partition"]: partition for partition in printer["partitions"]}
    states = {number: partition["state"] for number, partition in by_number.items()}
    assert states == dict.fromkeys(range(4), "running") | {scene.bad: "quarantined"}
    assert {partition["owner"] for partition in by_number.values()} == {scene.name}
    assert all(0 < partition["owned"] < 600 for partition in by_number.values())
    lagging = {number: partition["lag"] for number, partition in by_number.items() if partition["lag"]}
    assert lagging == {scene.bad: 1, scene.slow: 1}
    assert 0 < by_number[scene.bad]["oldest"] < 600
    assert sum(partition["processed"] for partition in by_number.values()) == GOOD


def test_who_watches_sees_one_look_after_the_other(scene: Scene) -> None:
    watching = scene.project.start("status", "shop:app", "--watch", "--json")
    first, second = (json.loads(line) for line in lines_of(watching, 2)[:2])
    assert second["at"] > first["at"]
    assert first["processors"][0]["rate"] is None
    assert second["processors"][0]["rate"] == {"sent": 0.0, "processed": 0.0}


# lag


def test_the_lag_is_shown_by_partition_with_its_owner(scene: Scene) -> None:
    shown = scene.project.run("lag", "shop:app")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert len(shown.stdout.splitlines()) == 1 + 2 * 4
    failed = row(shown.stdout, "printer", str(scene.bad))
    assert (failed[2], failed[5], failed[7]) == ("1", "quarantined", scene.name)
    assert re.fullmatch(r"[\d.]+ (s|min)", failed[3])
    assert row(shown.stdout, "printer", str(scene.slow))[2] == "1"
    done = row(shown.stdout, "counter", str(scene.slow))
    assert (done[2], done[3], done[4]) == ("0", "-", scene.slow_id)


def test_a_lag_above_a_limit_is_exit_status_1(scene: Scene) -> None:
    over = scene.project.run("lag", "shop:app", "--fail-over", "1")
    assert over.returncode == 1
    assert over.stderr == '"printer" has 2 events waiting, more than 1.\n'
    assert scene.project.run("lag", "shop:app", "--fail-over", "2").returncode == 0
    printer, _ = json.loads(scene.project.run("lag", "shop:app", "--fail-over", "0", "--json").stdout)
    assert (printer["name"], printer["lag"]) == ("printer", 2)


def test_the_lag_can_be_watched(scene: Scene) -> None:
    shown = lines_of(scene.project.start("lag", "shop:app", "--watch"), 10)
    assert [line.split()[0] for line in shown[:10]] == ["processor", *["printer"] * 4, *["counter"] * 4, "processor"]


# tail


def test_tail_shows_the_last_events_of_each_partition_in_order(scene: Scene) -> None:
    shown = scene.project.run("tail", "shop:orders", "-n", str(GOOD + 2))
    assert (shown.returncode, shown.stderr) == (0, "")
    sent = [*zip(scene.good_ids, range(GOOD), strict=True), (scene.bad_id, BAD), (scene.slow_id, SLOW)]
    by_partition: dict[int, list[tuple[str, int]]] = {}
    for line in shown.stdout.splitlines():
        entry_id, partition, _, moment, record = line.split(maxsplit=4)
        assert moment.endswith("Z")
        by_partition.setdefault(int(partition), []).append((entry_id, json.loads(record)["order_id"]))
    # Entries of two partitions may have the same id: their order is that of the partitions, and of no use to anybody.
    assert sorted(event for events in by_partition.values() for event in events) == sorted(sent)
    for events in by_partition.values():
        assert events == [event for event in sent if event in events]
    assert by_partition[scene.bad][-1] == (scene.bad_id, BAD)
    assert len(scene.project.run("tail", "shop:orders").stdout.splitlines()) == 10


def test_tail_as_json_is_a_line_per_event(scene: Scene) -> None:
    shown = scene.project.run("tail", "shop:orders", "-n", "1", "--json")
    assert data(shown) == {
        "id": scene.slow_id,
        "partition": scene.slow,
        "time": json.loads(shown.stdout)["time"],
        "key": str(SLOW),
        "record": {"order_id": SLOW, "amount": 1.0, "note": "slow"},
        "error": None,
        "headers": {},
    }


def test_tail_chooses_by_key_by_partition_and_by_place(scene: Scene) -> None:
    def ids(*options: str) -> list[str]:
        shown = scene.project.run("tail", "shop:orders", "--json", *options)
        assert shown.returncode == 0
        return [json.loads(line)["id"] for line in shown.stdout.splitlines()]

    assert ids("--key", str(BAD)) == [scene.good_ids[BAD], scene.bad_id]
    in_slow = ids("--partition", str(scene.slow), "--from", "earliest")
    assert in_slow[-1] == scene.slow_id
    assert ids("--partition", str(scene.slow), "--from", in_slow[1], "-n", "2") == in_slow[1:3]
    assert ids("--from", scene.bad_id) == [scene.bad_id, scene.slow_id]
    assert len(ids("--from", "-1h")) == GOOD + 2
    nothing = scene.project.run("tail", "shop:orders", "--from", "latest")
    assert (nothing.returncode, nothing.stdout, nothing.stderr) == (0, "", 'Nothing to show of "orders".\n')


def test_tail_follows_what_is_sent(scene: Scene) -> None:
    scene.project.write(
        other="import os\nfrom runnel import App\nfrom shop import Order\n\n"
        'app = App(name=os.environ["TEST_APP"])\n'
        'notes = app.stream("notes", record=Order, partition_by="order_id", partition_count=4)\n'
    )
    scene.project.run("send", "other:notes", '{"order_id": 1}')
    following = scene.project.start("tail", "other:notes", "-f", "--json")
    until(lambda: following.stdout, lambda: following.stderr)
    scene.project.run("sendmany", "other:notes", "-", stdin='{"order_id": 2}\n{"order_id": 3}\n{"order_id": 2}\n')
    shown = [json.loads(line)["record"]["order_id"] for line in lines_of(following, 4)]
    assert shown[0] == 1
    assert sorted(shown[1:]) == [2, 2, 3]


@pytest.mark.parametrize(
    "command",
    [
        ("tail", "shop:orders", "--from", "earliest"),
        ("tail", "shop:orders", "-f", "--json"),
        ("status", "shop:app", "--watch"),
        ("lag", "shop:app", "--watch", "--json"),
        ("quarantine", "list", "shop:app", "--watch"),
    ],
)
def test_a_command_whose_reader_has_gone_ends_without_a_word(scene: Scene, command: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as `| head` does when it has enough
    try:
        ended = scene.project.run(*command, stdout=writer)
    finally:
        os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_an_entry_that_is_no_record_is_shown_as_it_is(scene: Scene) -> None:
    scene.project.write(
        counts="import os\nfrom runnel import App, Record\n\n\nclass Number(Record):\n    n: int\n\n\n"
        'app = App(name=os.environ["TEST_APP"])\n'
        'numbers = app.stream("numbers", record=Number, partition_by="n", partition_count=1)\n',
        words="import os\nfrom runnel import App, Record\n\n\nclass Word(Record):\n    word: str\n\n\n"
        'app = App(name=os.environ["TEST_APP"])\n'
        'numbers = app.stream("numbers", record=Word, partition_by="word", partition_count=1)\n',
    )
    scene.project.run("send", "words:numbers", '{"word": "one"}')
    shown = scene.project.run("tail", "counts:numbers")
    assert shown.returncode == 0
    assert "not a record: {b'data': b'{\"word\":\"one\"}'}" in shown.stdout
    found = data(scene.project.run("tail", "counts:numbers", "--json"))
    assert (found["record"], found["key"]) == (None, None)
    assert found["error"]


def test_numbers_of_records_are_shown_as_they_were_sent(scene: Scene) -> None:
    scene.project.write(
        places="import os\nfrom runnel import App, Record\n\n\n"
        "class Place(Record):\n    name: str\n    at: list[float]\n\n\n"
        'app = App(name=os.environ["TEST_APP"])\n'
        'places = app.stream("places.dead", record=Place, partition_by="name", partition_count=1)\n'
    )
    place = '{"name": "here", "at": [52.520008, 0.0004, NaN, -Infinity]}'
    assert scene.project.run("send", "places:places", place).returncode == 0
    shown = scene.project.run("tail", "places:places", "--json")
    assert data(shown)["record"]["at"] == [52.520008, 0.0004, "NaN", "-Infinity"]
    (letter,) = data(scene.project.run("dead", "list", "places:places", "--json"))
    assert letter["event"]["record"] == data(shown)["record"]


# Terminals


def on_a_terminal(project: Project, *arguments: str, **variables: str) -> str:
    """What a command prints on a terminal of 200 columns."""
    ours, theirs = pty.openpty()
    try:
        command = subprocess.Popen(
            [sys.executable, "-m", "runnel", *arguments],
            cwd=project.directory,
            env=project.environment | {"TERM": "xterm-256color", "COLUMNS": "200"} | variables,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
        )
    finally:
        os.close(theirs)
    printed = b""
    try:
        while chunk := os.read(ours, 65536):
            printed += chunk
    except OSError:  # the other end was closed
        pass
    finally:
        os.close(ours)
        command.wait(PATIENCE)
    return printed.decode()


COLOR = re.compile(r"\x1b\[[0-9;]*3[0-7][0-9;]*m")


def test_colours_are_for_terminals_and_only_if_wanted(scene: Scene) -> None:
    assert COLOR.search(on_a_terminal(scene.project, "status", "shop:app"))
    assert not COLOR.search(on_a_terminal(scene.project, "status", "shop:app", NO_COLOR="1"))
    piped = scene.project.run("status", "shop:app")
    assert "\x1b" not in piped.stdout + piped.stderr


def test_without_a_terminal_lines_are_as_long_as_they_are(scene: Scene) -> None:
    narrow = scene.project.run("lag", "shop:app", COLUMNS="20")
    assert len(narrow.stdout.splitlines()) == 1 + 2 * 4
    assert row(narrow.stdout, "printer", str(scene.bad))[7] == scene.name


# What is wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "shop:ap"], 'Did you mean "app"?'),
        (["lag", "shpo:app"], 'Did you mean "shop"?'),
        (["tail", "shop:ordres"], 'Did you mean "orders"?'),
        (["tail", "shop:printer"], "`runnel tail` needs a Stream. Try: runnel tail shop:orders"),
        (["tail", "shop:orders", "--partition", "7"], "has the partitions 0 to 3, but not 7"),
        (["tail", "shop:orders", "--from", "yesterday"], "how long ago it was, such as -5m"),
        (["tail", "shop:orders", "--from", f"1-{2**64}"], "is larger than any entry id"),
        (["tail", "shop:orders", "-n", "-1"], "--number"),
        (["lag", "shop:app", "--fail-over", "-1"], "--fail-over"),
        (["status"], "Which app? Name it as module:attribute, for example: runnel status example:app"),
        (["statsu"], "Did you mean 'status'"),
    ],
)
def test_wrong_usage_is_explained(scene: Scene, arguments: list[str], message: str) -> None:
    ended = scene.project.run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in " ".join(ended.stderr.split())
    assert "Traceback" not in ended.stderr


def test_a_stream_with_other_properties_is_exit_status_4(scene: Scene) -> None:
    source = (scene.project.directory / "shop.py").read_text()
    scene.project.write(wide=source.replace("partition_count=4", "partition_count=8"))
    for command in (["status", "wide:app"], ["lag", "wide:app"], ["tail", "wide:orders"]):
        ended = scene.project.run(*command)
        assert (ended.returncode, ended.stdout) == (4, "")
        assert 'Stream "orders" has 4 partitions in Redis, but this process says 8.' in ended.stderr


def test_a_paused_processor_that_nobody_runs_needs_more_than_to_be_resumed(scene: Scene) -> None:
    assert scene.project.run("processor", "pause", "shop:printer", TEST_APP="paused").returncode == 0
    shown = scene.project.run("status", "shop:app", TEST_APP="paused").stdout
    assert row(shown, "printer")[2] == "paused"
    assert re.search(r'! "printer" was paused [\d.]+ s ago by \S+\. No worker runs it\.$', shown, re.MULTILINE)


def test_an_app_that_was_never_used_has_nothing_to_show(scene: Scene) -> None:
    shown = scene.project.run("status", "shop:app", TEST_APP="never-used")
    assert shown.returncode == 0
    assert row(shown.stdout, "orders") == ["orders", "4", "never used"]
    assert row(shown.stdout, "printer")[2:6] == ["no worker", "-", "0", "-"]
    lag = scene.project.run("lag", "shop:app", TEST_APP="never-used")
    assert (lag.returncode, lag.stdout) == (0, "")
    assert lag.stderr.splitlines()[0] == '"printer": its stream "orders" was never used.'


@pytest.mark.parametrize(
    "commands",
    [
        (["status", "shop:app"], ["status", "shop:app", "--watch"], ["lag", "shop:app"], ["tail", "shop:orders"]),
        (["doctor", "shop:app"], ["quarantine", "list", "shop:app"], ["quarantine", "show", "shop:printer"]),
        (["quarantine", "retry", "shop:printer"], ["quarantine", "skip", "shop:printer", "--partition", "0"]),
        tuple(["dead", name, "shop:orders"] for name in ("list", "show", "replay", "purge")),
        tuple(["processor", name, "shop:printer"] for name in ("pause", "resume", "delete", "acknowledge")),
    ],
)
def test_without_a_server_every_command_ends_with_status_3(scene: Scene, commands: tuple[list[str], ...]) -> None:
    started = [scene.project.start(*command, "--redis-url", "redis://127.0.0.1:1") for command in commands]
    for command, one in zip(commands, started, strict=True):
        assert one.ends() == 3, command
        assert one.stdout == "", command
        assert one.stderr.startswith("Error: Cannot reach redis://127.0.0.1:1 (connection refused)."), command
        assert "Traceback" not in one.stderr, command
