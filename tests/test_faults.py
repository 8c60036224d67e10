"""The fault suite finds a mutant, from a real process to the verdict. `python -m faults --mutants` breeds them all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from faults import run
from faults.__main__ import main
from faults.clock import Clock
from faults.history import History
from faults.leak import rows_of
from faults.mutants import MUTANTS
from faults.plays import PLAYS, SHORT
from faults.plays.play import Play, Scene
from faults.run import perform
from faults.stage import Broken
from faults.violation import Violation

from program import PATIENCE, Running, until
from runnel.server import EmbeddedServer, find_binary

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.anyio


def test_each_mutant_has_a_play_and_what_is_always_played_exists() -> None:
    assert {mutant.play for mutant in MUTANTS.values()} <= PLAYS.keys()
    assert set(SHORT) <= PLAYS.keys()


@pytest.mark.processes
@pytest.mark.timeout(240)
async def test_a_worker_that_commits_before_its_handler_is_found(
    server_binary: str | Path | None, tmp_path: Path
) -> None:
    play = PLAYS[MUTANTS["commit-first"].play]
    outcome = await perform(play, 1, tmp_path, binary=server_binary, seconds=6, mutant="commit-first")
    assert "C2" in {violation.check for violation in outcome.violations}, "whether or not a kill hits a handler"
    told = (tmp_path / "account.txt").read_text()
    assert "The first: " in told
    for word in ("send    ", "handle  ", "commit  "):
        assert word in told
    assert "kill" in {item["kind"] for item in json.loads((tmp_path / "schedule.json").read_text())}
    assert json.loads((tmp_path / "log.json").read_text())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["F99"], "There is no fault F99. There are: F1, F2, "),
        (["F1", "F99"], "There is no fault F99."),
        (["--mutants", "no-such"], "There is no mutant no-such. There are: any-token, "),
        (["--short", "F3"], "say --short, not both"),
        (["--seed", "x"], "invalid int value: 'x'"),
        (["F1", "--server", "/no/such/server"], 'There is no server program "/no/such/server"'),
    ],
)
def test_wrong_words_are_told_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["faults", "--directory", str(tmp_path / "journals"), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "journals").exists()


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["F3"], 1, "Not played: F3"),
        (["--mutants", "commit-first"], 1, "NOT PLAYED"),
        (["--leak"], 1, "before it was ready"),
        (["F3", "--directory", "/dev/null"], 2, "Name another --directory"),
    ],
)
def test_a_program_that_is_no_server_and_a_place_that_is_none_are_told(
    words: list[str], status: int, says: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "faults", "--server", shutil.which("true") or "", "--directory", tmp_path, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == status
    assert says in ended.stdout
    assert "promises held" not in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_ends_what_it_has_started(
    number: signal.Signals, server_binary: str | Path | None, tmp_path: Path
) -> None:
    words = ["F2", "--directory", str(tmp_path), *(["--server", str(server_binary)] if server_binary else [])]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    playing = Running([sys.executable, "-m", "faults", *words], tmp_path, variables, 0)
    until(lambda: list(tmp_path.glob("*/F2/producer-*.journal")), lambda: playing.stderr)
    started = descendants(playing.process.pid)
    assert len(started) >= 8, "a server, four workers and three producers"
    assert playing.stop(number) == 130
    assert "Interrupted" in playing.stdout
    assert "Traceback" not in playing.stderr
    assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.processes
@pytest.mark.timeout(120)
async def test_a_play_that_is_broken_off_leaves_an_account_even_if_no_server_answers(
    server_binary: str | Path | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def act(scene: Scene) -> None:
        scene.stage.kill(scene.one())
        scene.stage.place.stop()
        raise Broken("that did not come about")

    def judge(history: History, scene: Scene) -> list[Violation]:
        raise AssertionError("there is nothing to judge")

    monkeypatch.setattr(run, "ANSWER_WITHIN", 0.5)
    play = Play("F0", "broken off", act, judge, workers=1, producers=(("synthetic", 200.0),))
    outcome = await perform(play, 1, tmp_path, binary=server_binary)
    assert "broken" in {violation.check for violation in outcome.violations}
    assert "that did not come about" in (tmp_path / "account.txt").read_text()
    assert [item["kind"] for item in json.loads((tmp_path / "schedule.json").read_text())] == ["kill"]


def descendants(pid: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    found = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return [*found, *(one for child in found for one in descendants(child))]


@pytest.mark.parametrize(("per_second", "flat"), [(0, True), (100, True), (50_000, False)])
def test_a_leak_is_what_grows_steadily_and_not_what_jumps(per_second: int, flat: bool) -> None:
    points = [(float(n), 50e6 + per_second * n + (30e6 if n % 40 == 0 else 0)) for n in range(240)]
    (row,) = rows_of({"worker: RSS of 0": points})
    assert row.flat is flat


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
@pytest.mark.parametrize(("ahead", "factor"), [(3600, 1), (-3600, 1), (0, 3)])
def test_the_time_of_day_of_a_server_can_be_set(
    server_binary: str | Path | None, tmp_path: Path, ahead: int, factor: int
) -> None:
    binary = find_binary(None if server_binary is None else str(server_binary))
    clock = Clock(tmp_path, binary)
    with EmbeddedServer(binary=clock.wrapper) as server, redis.Redis.from_url(server.url) as client:

        def shown() -> float:
            seconds, microseconds = client.time()
            return float(seconds) + microseconds / 1_000_000 - time.time()

        assert abs(shown()) < 0.2
        clock.set(ahead, factor)
        began = time.monotonic()
        until(lambda: abs(shown() - ahead - (factor - 1) * (time.monotonic() - began)) < 0.2)
        time.sleep(1)
        assert abs(shown() - ahead - (factor - 1) * (time.monotonic() - began)) < 0.2
