"""Several processes of one worker, restarts on changes, bursts: ``runnel worker`` with the options for them."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from program import Project, Running, environment, until
from runnel.cli.supervising import Ending, judge

CRASHER = """
import os
import signal

from shop import app, orders


@app.processor(orders)
async def crasher(events):
    async for order in events.records():
        if order.note == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if order.note == "quit":
            os._exit(7)
"""


@pytest.fixture
def project(redis_url: str, app_name: str, server_binary: str | Path | None, tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path, environment(redis_url, app_name, server_binary, tmp_path))
    yield made
    made.close()


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def settled(running: Running, processes: int) -> list[int]:
    """Wait until all processes have joined; returns their ids."""
    until(lambda: len(running.workers()) == processes, lambda: running.stderr)
    running.says("joined", processes)
    return running.workers()


@pytest.mark.parametrize(
    ("status", "ending"),
    [
        (0, Ending.FINISHED),
        (130, Ending.FINISHED),
        (1, Ending.STOPPED_ALL),
        (2, Ending.STOPPED_ALL),
        (4, Ending.STOPPED_ALL),
        (3, Ending.CRASHED),
        (7, Ending.CRASHED),
        (-signal.SIGKILL, Ending.CRASHED),
        (-signal.SIGSEGV, Ending.CRASHED),
    ],
)
def test_how_the_end_of_a_process_is_judged(status: int, ending: Ending) -> None:
    assert judge(status) is ending


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_several_processes_share_the_work_and_are_summed_up(project: Project, number: signal.Signals) -> None:
    worker = project.start("worker", "shop:app", "-p", "2", "--processors", "counter")
    pids = settled(worker, 2)
    assert len(set(pids)) == 2
    until(lambda: worker.stderr.count("owned=2") >= 2, lambda: worker.stderr)
    project.send(*range(10))
    worker.says("count ", 10)
    assert worker.stop(number) == 0
    assert worker.stderr.count(f'app "{project.environment["TEST_APP"]}"') == 1, "one banner"
    assert "2 processes" in worker.stderr.splitlines()[0]
    assert worker.stderr.count("The server keeps nothing on disk: a restart loses all events and positions.") == 1
    assert {"process=1", "process=2"} <= set(worker.stderr.split())
    last = worker.stderr.splitlines()[-1]
    assert "all processes have ended" in last
    assert "processes=2 processed=10 restarts=0" in last
    assert all(gone(pid) for pid in pids)


@pytest.mark.processes
def test_a_second_signal_does_not_wait(project: Project) -> None:
    worker = project.start("worker", "shop:app", "-p", "2", "--processors", "printer")
    pids = settled(worker, 2)
    project.send(1, note="slow")
    worker.says("begin 1")
    worker.tell(signal.SIGTERM)
    worker.says("in_flight=1")
    assert worker.stop() == 130
    assert all(gone(pid) for pid in pids)


@pytest.mark.processes
@pytest.mark.parametrize("note", ["crash", "quit"])
def test_a_process_that_crashes_is_started_again_with_back_off(project: Project, note: str) -> None:
    project.write(crashes=CRASHER)
    worker = project.start("worker", "crashes:app", "-p", "2", "--processors", "crasher")
    first = settled(worker, 2)
    project.send(1, note=note)
    worker.says("process crashed; starting it again", 2)  # it dies, the other one takes over and dies as well
    until(lambda: len(worker.workers()) >= 4, lambda: worker.stderr)
    status = {"crash": -signal.SIGKILL, "quit": 7}[note]
    crashes = re.findall(r"starting it again +pid=(\d+) status=(-?\d+) seconds=(\S+)", worker.stderr)
    assert {int(pid) for pid, _, _ in crashes} & set(first)
    assert {int(found) for _, found, _ in crashes} == {int(status)}
    assert all(0.25 <= float(seconds) <= 30 for _, _, seconds in crashes)
    assert worker.stop() in (0, 7, 137)  # the event kills whoever has it, also while all are being stopped
    assert all(gone(pid) for pid in worker.workers())


@pytest.mark.processes
def test_one_process_that_halts_stops_all_with_status_1(project: Project) -> None:
    worker = project.start("worker", "shop:app", "-p", "2")
    pids = settled(worker, 2)
    project.send(1, note="bad")
    assert worker.ends() == 1
    assert "ValueError: a bad order" in worker.stderr
    assert "starting it again" not in worker.stderr
    assert re.search(r"stopping the others +pid=\d+ status=1", worker.stderr)
    assert all(gone(pid) for pid in pids)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "variables", "status", "message"),
    [
        (["shop:app", "-p", "0"], {}, 2, "greater than or equal"),
        (["shop:app", "-p", "many"], {}, 2, "--workers"),
        (["shop:nothing", "-p", "2"], {}, 2, 'has no "nothing"'),
        (["shop:app", "-p", "2", "--processors", "printr"], {}, 4, 'Did you mean "printer"?'),
        (["shop:app", "-p", "2", "--redis-url", "redis://127.0.0.1:1"], {}, 3, "Cannot reach redis://127.0.0.1:1"),
        (["shop:app", "--grace-period", "0"], {}, 4, "grace_period = 0.0"),
    ],
)
def test_what_is_wrong_is_said_once_before_anything_starts(
    project: Project, arguments: list[str], variables: dict[str, str], status: int, message: str
) -> None:
    ended = project.run("worker", *arguments, **variables)
    assert ended.returncode == status
    assert ended.stderr.count(message) == 1
    assert "Traceback" not in ended.stderr
    assert "worker started" not in ended.stderr


@pytest.mark.processes
def test_the_processes_end_when_their_supervisor_is_killed(project: Project) -> None:
    worker = project.start("worker", "shop:app", "-p", "2")
    pids = settled(worker, 2)
    worker.stop(signal.SIGKILL)
    until(lambda: all(gone(pid) for pid in pids), lambda: worker.stderr)
    worker.says("reason='the supervisor is gone'", 2)
    assert "Traceback" not in worker.stderr


@pytest.mark.processes
@pytest.mark.parametrize("processes", ["1", "3"])
def test_a_burst_ends_with_status_0_when_nothing_is_left(project: Project, processes: str) -> None:
    project.send(*range(20))
    worker = project.start("worker", "shop:app", "--burst", "-p", processes)
    assert worker.ends() == 0
    assert worker.stdout.count("end ") == 20
    assert worker.stdout.count("count ") == 20
    assert "reason='nothing is left to process'" in worker.stderr
    assert project.waiting("printer") == project.waiting("counter") == 0


@pytest.mark.processes
def test_a_burst_waits_for_what_its_events_lead_to(project: Project) -> None:
    """``relay`` sends to the stream of a processor that is declared, and looked at, before it."""
    project.write(
        chain="""
import os
from runnel import App, Record

app = App(name=os.environ["TEST_APP"])


class Step(Record):
    n: int


last = app.stream("last", record=Step, partition_by="n", partition_count=1)
first = app.stream("first", record=Step, partition_by="n", partition_count=1)


@app.processor(last)
async def final(events):
    async for step in events.records():
        print("final", step.n)


@app.processor(first)
async def relay(events):
    async for step in events.records():
        await last.send(step)
"""
    )
    for n in range(3):
        assert project.run("send", "chain:first", f'{{"n": {n}}}').returncode == 0
    worker = project.start("worker", "chain:app", "--burst")
    assert worker.ends() == 0
    assert worker.stdout.splitlines() == ["final 0", "final 1", "final 2"]


@pytest.mark.processes
def test_a_burst_that_leaves_a_quarantine_behind_ends_with_status_1(project: Project) -> None:
    project.send(1, note="bad")
    project.send(2)
    worker = project.start("worker", "shop:app", "--burst", RUNNEL_EXCEPTION_POLICY="quarantine")
    assert worker.ends() == 1
    assert '"printer" is quarantined in 1 partition: what is there was not processed' in worker.stderr
    assert "end 2" in worker.stdout


@pytest.mark.processes
def test_a_burst_does_not_wait_for_what_is_paused_and_says_what_that_was(project: Project) -> None:
    assert project.run("processor", "pause", "shop:printer").returncode == 0
    empty = project.run("worker", "shop:app", "--burst")
    assert (empty.returncode, "not processed" in empty.stderr) == (0, False), "nothing was kept from being processed"
    project.send(1, 2)
    worker = project.run("worker", "shop:app", "--burst")
    assert worker.returncode == 1
    assert '"printer" is paused: 2 events not processed' in worker.stderr
    assert "quarantined" not in worker.stderr
    assert "begin" not in worker.stdout
    assert worker.stdout.count("count") == 2


@pytest.mark.processes
def test_the_grace_period_of_the_command_wins(project: Project) -> None:
    worker = project.start("worker", "shop:app", "--grace-period", "0.2")
    project.send(1, note="slow")
    worker.says("begin 1")
    assert worker.stop() == 0
    assert "end 1" not in worker.stdout
    assert project.waiting("printer") == 1


@pytest.mark.processes
def test_a_worker_is_restarted_when_a_file_changes(project: Project) -> None:
    source = (project.directory / "shop.py").read_text()
    worker = project.start("worker", "shop:app", "--reload", "--processors", "printer")
    settled(worker, 1)
    project.send(1)
    worker.says("end 1")
    project.write(shop=source.replace('say("end"', 'say("finished"'))
    worker.says("A file has changed: restarting the worker.")
    settled(worker, 2)
    project.send(2)
    worker.says("finished 2")
    assert worker.stop() == 0
    assert all(gone(pid) for pid in worker.workers())


@pytest.mark.processes
@pytest.mark.parametrize(
    ("option", "package", "extra"),
    [
        (["--reload"], "watchfiles", "reload"),
        (["--http", "0"], "uvicorn", "http"),
        (["--http", "0"], "prometheus_client", "http"),
    ],
)
def test_an_option_whose_packages_are_missing_says_how_to_install_them(
    project: Project, option: list[str], package: str, extra: str
) -> None:
    blocker = project.directory / "blocked"
    blocker.mkdir()
    (blocker / f"{package}.py").write_text(f"raise ModuleNotFoundError('no {package}', name={package!r})\n")
    ended = project.run("worker", "shop:app", *option, PYTHONPATH=str(blocker))
    assert ended.returncode == 4
    assert f"pip install 'runnel[{extra}]'" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert sys.executable not in ended.stderr


# Log lines of the app itself

LOGGING = """
import logging
import os

import structlog
from runnel import App, Record

app = App(name=os.environ["TEST_APP"])


class Order(Record):
    order_id: int


orders = app.stream("orders", record=Order, partition_by="order_id", partition_count=4)


@app.processor(orders)
async def logs(events):
    async for order in events.records():
        structlog.get_logger().info("by structlog", order=order.order_id)
        logging.getLogger("shop.orders").warning("by logging: %s", order.order_id)
        logging.getLogger("shop.orders").debug("not shown")
"""


@pytest.mark.processes
def test_log_lines_of_handlers_name_processor_and_partition(project: Project) -> None:
    project.write(logs=LOGGING)
    worker = project.start("worker", "logs:app", "--log-format", "json")
    worker.says("partitions assigned")
    project.send(5)
    worker.says("by logging: 5")
    assert worker.stop() == 0
    lines = [json.loads(line) for line in worker.stderr.splitlines()]
    (ours,) = (line for line in lines if line["event"] == "by structlog")
    (theirs,) = (line for line in lines if line["event"] == "by logging: 5")
    assert ours["order"] == 5
    assert ours["level"] == "info"
    assert theirs["level"] == "warning"
    for line in (ours, theirs):
        assert line["processor"] == "logs"
        assert line["partition"] in range(4)
    assert "not shown" not in worker.stderr
    # What is not about one partition does not name one, although it was announced from one.
    assert all("partition" not in line for line in lines if line["event"] in ("partitions assigned", "stopping"))


@pytest.mark.processes
def test_logging_that_the_app_configures_is_left_alone(project: Project) -> None:
    project.write(logs="import logging\nlogging.basicConfig(format='mine: %(message)s')\n" + LOGGING)
    worker = project.start("worker", "logs:app")
    project.send(5)
    worker.says("by logging: 5")
    assert worker.stop() == 0
    assert "mine: by logging: 5" in worker.stderr.splitlines()
