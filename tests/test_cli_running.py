"""Commands that go on until they are stopped: ``worker``, ``server`` and ``dev``, as real processes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from program import PATIENCE, Project, environment, until
from runnel.server import EmbeddedServer
from runnel.server.address import free_port

pytestmark = pytest.mark.processes


@pytest.fixture
def project(redis_url: str, app_name: str, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path, environment(redis_url, app_name, server_binary, tmp_path))
    yield made
    made.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def answers(port: int) -> bool:
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


# worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_says_what_it_runs_processes_and_stops_with_status_0(project: Project, number: signal.Signals) -> None:
    shop = (project.directory / "shop.py").read_text()
    project.write(
        shop=shop.replace(
            "@app.processor(orders)\nasync def counter", "@app.processor(orders, retries=1)\nasync def counter"
        )
    )
    worker = project.start("worker", "shop:app")
    worker.says("partitions assigned", 2)
    project.send(7)
    worker.says("end 7")
    worker.says("count 7")
    assert worker.stop(number) == 0
    banner = worker.stderr.splitlines()
    assert banner[0].startswith(f'Runnel 0.1.0   app "{project.environment["TEST_APP"]}"   ')
    assert project.environment["RUNNEL_REDIS_URL"] in banner[0]
    assert banner[1] == "  printer   orders, 4 partitions, on failure: halt"
    assert banner[2] == "  counter   orders, 4 partitions, on failure: 1 retry, then halt"
    for line in ("worker started", "joined", "owned=4", f"reason={number.name}", "processed=2"):
        assert line in worker.stderr
    assert "Traceback" not in worker.stderr
    assert project.waiting("printer") == 0


def test_the_event_in_progress_is_finished_before_a_worker_stops(project: Project) -> None:
    worker = project.start("worker", "shop:app")
    project.send(1, note="slow")
    worker.says("begin 1")
    worker.tell(signal.SIGTERM)
    worker.says("in_flight=1")
    (project.directory / "gate").touch()
    assert worker.ends() == 0
    assert "end 1" in worker.stdout
    assert project.waiting("printer") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_and_the_event_is_repeated(project: Project, number: signal.Signals) -> None:
    worker = project.start("worker", "shop:app")
    project.send(1, note="slow")
    worker.says("begin 1")
    worker.tell(number)
    worker.says("in_flight=1")
    assert worker.stop(number) == 130
    assert "end 1" not in worker.stdout
    assert "Traceback" not in worker.stderr
    (project.directory / "gate").touch()
    successor = project.start("worker", "shop:app")
    successor.says("end 1")
    assert successor.stop() == 0


BLOCKED = """
import asyncio
import os
import time

from runnel import App, Record

app = App(name=os.environ["TEST_APP"], heartbeat_interval=0.2)


class Order(Record):
    order_id: int
    amount: float = 1.0
    note: str = ""


orders = app.stream("orders", record=Order, partition_by="order_id", partition_count=4)


@app.processor(orders)
async def printer(events):
    async for order in events.records():
        print("begin", order.order_id)
        await asyncio.to_thread(time.sleep, 600)
"""


def test_a_second_signal_does_not_wait_for_a_thread(project: Project) -> None:
    project.write(blocked=BLOCKED)
    worker = project.start("worker", "blocked:app")
    project.send(1)
    worker.says("begin 1")
    worker.tell(signal.SIGTERM)
    worker.says("in_flight=1")
    assert worker.stop() == 130
    assert "Traceback" not in worker.stderr


def test_a_worker_runs_the_named_processors_only(project: Project) -> None:
    one = project.start("worker", "shop:app", "--processors", "counter")
    project.send(1)
    one.says("count 1")
    assert one.stop() == 0
    assert "printer" not in one.stderr
    assert "end 1" not in one.stdout
    both = project.start("worker", "shop:app", "--processors=printer, counter")
    both.says("end 1")
    both.says("partitions assigned", 2)
    assert both.stop() == 0
    assert "processors=['printer', 'counter']" in both.stderr


def test_a_halted_worker_ends_with_status_1_and_shows_the_users_traceback_above_the_line(project: Project) -> None:
    (event_id,) = project.send(1, note="bad")
    worker = project.start("worker", "shop:app")
    assert worker.ends() == 1
    lines = worker.stderr.splitlines()
    begin = lines.index("Traceback (most recent call last):")
    end = lines.index("ValueError: a bad order")
    assert begin < end
    assert 'shop.py", line ' in lines[begin + 1]
    assert not [line for line in lines[begin:end] if "/runnel/" in line]
    assert "processing failed; the worker stops" in lines[end + 1]
    assert event_id in lines[end + 1]
    assert "reason='the processor \"printer\" halted'" in worker.stderr
    assert project.waiting("printer") == 1


def test_a_traceback_that_the_app_logs_shows_no_local_variables(project: Project) -> None:
    shop = (project.directory / "shop.py").read_text()
    body = (
        'say("count", order.order_id)\n'
        "        password = order.note\n"
        "        try:\n"
        "            raise ValueError(len(password))\n"
        "        except ValueError:\n"
        '            logging.getLogger("shop").exception("no entry")\n'
    )
    project.write(shop="import logging\n" + shop.replace('say("count", order.order_id)\n', body))
    worker = project.start("worker", "shop:app")
    worker.says("partitions assigned", 2)
    project.send(7, note="sesame")
    worker.says("no entry")
    worker.says("ValueError: 6")
    assert worker.stop() == 0
    assert "Traceback (most recent call last):" in worker.stderr
    assert "sesame" not in worker.stderr


def test_json_logs_are_json_lines_and_nothing_else(project: Project) -> None:
    project.send(1, note="bad")
    worker = project.start("worker", "shop:app", "--log-format", "json", RUNNEL_LOG_FROMAT="console")
    assert worker.ends() == 1
    logged = [json.loads(line) for line in worker.stderr.splitlines()]
    assert all({"event", "level", "timestamp"} <= set(line) for line in logged)
    events = [line["event"] for line in logged]
    assert {"worker started", "joined", "stopping", "stopped"} <= set(events)
    assert 'RUNNEL_LOG_FROMAT is no setting of Runnel. Did you mean "RUNNEL_LOG_FORMAT"?' in events[0]
    (failed,) = (line for line in logged if line["event"].startswith("processing failed"))
    assert failed["error"] == "ValueError: a bad order"
    assert failed["traceback"].endswith("ValueError: a bad order")


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [("debug", ["partition gained", "joined"], []), ("warning", [], ["joined", "stopping"])],
)
def test_the_log_level_decides_what_is_logged(
    project: Project, level: str, shown: list[str], hidden: list[str]
) -> None:
    worker = project.start("worker", "shop:app", "--log-level", level)
    project.send(1)
    worker.says("end 1")
    assert worker.stop() == 0
    assert [text for text in shown if text not in worker.stderr] == []
    assert [text for text in hidden if text in worker.stderr] == []


@pytest.mark.parametrize("how", ["attribute left out", "RUNNEL_APP", "pyproject.toml"])
def test_the_app_can_be_named_in_other_ways(project: Project, how: str) -> None:
    if how == "attribute left out":
        worker = project.start("worker", "shop")
    elif how == "RUNNEL_APP":
        worker = project.start("worker", RUNNEL_APP="shop:app")
    else:
        (project.directory / "pyproject.toml").write_text('[tool.runnel]\napp = "shop:app"\n')
        worker = project.start("worker")
    worker.says("partitions assigned", 2)
    assert worker.stop() == 0


def test_modules_are_discovered(project: Project) -> None:
    project.write(
        **{
            "main": "import os\nfrom runnel import App\n\n"
            'app = App(os.environ["TEST_APP"], autodiscover="myproj/**/streams.py")\n',
            "myproj/__init__": "",
            "myproj/tasks": "raise RuntimeError('not to be imported')",
            "myproj/sales/__init__": "",
            "myproj/sales/streams": "from main import app\n\n@app.task\nasync def hello():\n    print('hello')\n",
        }
    )
    worker = project.start("worker", "main:app")
    worker.says("hello\n")
    assert worker.stop() == 0
    assert "  hello   at startup" in worker.stderr


def test_an_app_without_anything_to_run_says_so(project: Project) -> None:
    project.write(bare='import os\nfrom runnel import App\napp = App(os.environ["TEST_APP"])')
    worker = project.start("worker", "bare:app")
    worker.says("no processors and no background tasks: is their module imported? See autodiscover.")
    worker.says("worker started")
    assert worker.stop() == 0


# processor reset, with a worker


def test_a_reset_moves_a_running_worker(project: Project) -> None:
    worker = project.start("worker", "shop:app")
    ids = project.send(1, 1, 1)
    worker.says("end 1", 3)
    until(lambda: project.waiting("printer") == 0)
    shown = project.run("processor", "reset", "shop:printer", "--start", ids[1])
    assert shown.returncode == 0
    assert "2 events will be processed" in shown.stderr
    assert project.waiting("printer") == 0
    done = project.run("processor", "reset", "shop:printer", "--start", ids[1], "--execute")
    assert done.returncode == 0
    worker.says("end 1", 5)
    until(lambda: project.waiting("printer") == 0)
    assert worker.stop() == 0
    assert worker.stdout.count("count 1") == 3, "another processor was moved as well"


def test_a_worker_goes_on_from_where_it_was_reset_to_while_it_was_away(project: Project) -> None:
    project.send(1, 2, 3)
    project.run("processor", "reset", "shop:printer", "--start", "$", "--execute")
    project.send(4)
    worker = project.start("worker", "shop:app")
    worker.says("end 4")
    worker.says("count ", 4)
    assert worker.stop() == 0
    assert [line for line in worker.stdout.splitlines() if line.startswith("end")] == ["end 4"]
    project.run("processor", "reset", "shop:printer", "--start", "0", "--execute")
    again = project.start("worker", "shop:app")
    again.says("end", 4)
    assert again.stop() == 0


# server


def test_a_server_prints_its_address_and_ends_with_a_signal(project: Project) -> None:
    server = project.start("server", "--port", "0")
    server.says("Ctrl-C ends it.")
    url = server.address()
    port = urlsplit(url).port
    assert port is not None
    assert project.run("send", "shop:orders", '{"order_id": 1}', "--redis-url", url).returncode == 0
    taken = project.run("server", "--port", str(port))
    assert taken.returncode == 1
    assert f"Port {port} of 127.0.0.1 is already in use." in taken.stderr
    assert f"`runnel server --port {port + 1}`" in taken.stderr
    assert "Traceback" not in taken.stderr
    assert server.stop() == 0
    assert not answers(port)


def test_a_server_that_was_suspended_goes_on(project: Project) -> None:
    server = project.start("server", "--port", "0")
    url = server.address()
    server.tell(signal.SIGSTOP)  # as Ctrl-Z does
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(1)  # for longer than it waits between two looks
    server.tell(signal.SIGCONT)
    with pytest.raises(subprocess.TimeoutExpired):
        server.process.wait(1)
    assert project.run("send", "shop:orders", '{"order_id": 1}', "--redis-url", url).returncode == 0
    assert server.stop() == 0


def test_a_server_keeps_its_data_where_it_is_told_to(project: Project) -> None:
    for lag in (1, 2):
        server = project.start("server", "--port", "0", "--data", "kept")
        url = server.address()
        project.environment["RUNNEL_REDIS_URL"] = url
        assert project.run("send", "shop:orders", '{"order_id": 1}').returncode == 0
        assert project.waiting("printer") == lag
        assert server.stop(signal.SIGINT) == 0


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--host", "0.0.0.0"], 4, "it has no password"),
        (["--port", "70000"], 2, "--port"),
        (["--unix", "nowhere/x.sock"], 4, "there is no directory"),
    ],
)
def test_a_server_that_makes_no_sense_is_refused(
    project: Project, arguments: list[str], status: int, message: str
) -> None:
    ended = project.run("server", *arguments)
    assert ended.returncode == status
    assert message in ended.stderr


def test_who_follows_a_stream_waits_for_the_end_of_an_outage(
    project: Project, server_binary: str | Path | None, tmp_path: Path
) -> None:
    with EmbeddedServer(binary=server_binary, data_dir=tmp_path / "data", append_only=True) as server:
        project.environment["RUNNEL_REDIS_URL"] = server.url
        project.send(1)
        following = project.start("tail", "shop:orders", "-f")
        following.says('"order_id":1')
        server.restart()
        following.says("Cannot reach redis:")
        following.says("Redis answers again.")
        project.send(2)
        following.says('"order_id":2')
        assert following.stop(signal.SIGINT) == 130
        assert following.stderr.count("\n") == 2, following.stderr


# sendmany


def test_a_file_that_is_interrupted_was_sent_up_to_a_line(project: Project) -> None:
    lines = "".join(f'{{"order_id": {n}}}\n' for n in range(1_000))
    (project.directory / "data.jsonl").write_text(lines)
    sending = project.start("sendmany", "shop:orders", "data.jsonl", "--rate", "50")
    until(lambda: project.waiting("printer") >= 20)
    assert sending.stop(signal.SIGINT) == 130
    said = re.fullmatch(
        r"Not finished: (\d+) events sent, up to line (\d+)(?:, and perhaps some up to line (\d+))?\.\n", sending.stderr
    )
    assert said, sending.stderr
    sent, through, perhaps = (int(number or 0) for number in said.groups())
    assert sent == through
    assert sent <= project.waiting("printer") <= max(sent, perhaps)


def test_what_comes_from_stdin_is_sent_as_it_comes_and_ctrl_c_ends_the_waiting(project: Project) -> None:
    sending = subprocess.Popen(
        [sys.executable, "-m", "runnel", "sendmany", "shop:orders", "-"],
        cwd=project.directory,
        env=project.environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert sending.stdin is not None
        sending.stdin.write(b'{"order_id": 1}\n')
        sending.stdin.flush()
        until(lambda: project.waiting("printer") == 1)
        for part in (b'{"order_id": 2, "note": "gr\xc3', b'\xb6\xc3\x9fe"}\r\n'):  # parted within a character
            sending.stdin.write(part)
            sending.stdin.flush()
        until(lambda: project.waiting("printer") == 2)
        sending.send_signal(signal.SIGINT)
        assert sending.wait(PATIENCE) == 130
        assert sending.stderr is not None
        assert sending.stderr.read().startswith(b"Not finished: ")
    finally:
        sending.kill()
        sending.communicate()
    assert "größe" in project.run("tail", "shop:orders", "-n", "1").stdout


# dev


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_dev_brings_a_server_along_and_leaves_nothing_behind(project: Project, number: signal.Signals) -> None:
    port = free_port("127.0.0.1")
    project.environment["RUNNEL_REDIS_URL"] = f"redis://127.0.0.1:{port}"
    dev = project.start("dev", "shop:app")
    dev.says("partitions assigned", 2)
    assert f"at redis://127.0.0.1:{port}, data in memory only." in dev.stderr
    assert "The server keeps nothing on disk" not in dev.stderr, "that is known, and as it should be"
    project.send(5)
    dev.says("end 5")
    (worker,) = dev.workers()
    assert alive(worker)
    assert dev.stop(number) == 0
    assert f"reason={signal.SIGTERM.name}" in dev.stderr
    assert not alive(worker)
    assert not answers(port)


def test_dev_restarts_the_worker_when_a_file_changes(project: Project) -> None:
    port = free_port("127.0.0.1")
    project.environment["RUNNEL_REDIS_URL"] = f"redis://127.0.0.1:{port}"
    source = (project.directory / "shop.py").read_text()
    dev = project.start("dev", "shop:app", "--processors", "printer", "-l", "info")
    dev.says("partitions assigned")
    project.send(1)
    dev.says("end 1")
    project.write(shop=source.replace('say("end"', 'say("finished"'))
    dev.says("A file has changed: restarting the worker.")
    dev.says("partitions assigned", 2)
    project.send(2)
    dev.says("finished 2")
    project.write(shop=source + "def f(:\n")
    dev.says("SyntaxError")
    dev.says("The worker ended with status 2. Waiting for a change.")
    project.write(shop=source)
    dev.says("partitions assigned", 3)
    assert dev.stop(signal.SIGINT) == 0
    assert len(dev.workers()) == 3
    assert not any(alive(worker) for worker in dev.workers())
    assert dev.stdout.split("\n").count("end 1") == 1, "an event was repeated by a reload"


def test_dev_uses_a_server_that_is_there(project: Project) -> None:
    dev = project.start("dev", "shop:app", "--no-reload")
    dev.says("partitions assigned", 2)
    assert "Started" not in dev.stderr
    assert dev.stop() == 0
    assert project.send(1)


def test_dev_without_reload_ends_with_its_worker(project: Project) -> None:
    project.send(1, note="bad")
    dev = project.start("dev", "shop:app", "--no-reload")
    assert dev.ends() == 1
    assert "ValueError: a bad order" in dev.stderr
