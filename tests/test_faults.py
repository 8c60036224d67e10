"""The fault suite finds a mutant, from a real process to the verdict. `python -m faults --mutants` breeds them all."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults.leak import rows_of
from faults.mutants import MUTANTS
from faults.plays import PLAYS, SHORT
from faults.run import perform

from program import PATIENCE, Running, until

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
    mutant = MUTANTS["commit-first"]
    found: set[str] = set()
    for seed in range(3):  # a kill may miss the handler
        directory = tmp_path / str(seed)
        outcome = await perform(
            PLAYS[mutant.play], seed, directory, binary=server_binary, seconds=6, mutant="commit-first"
        )
        found = {violation.check for violation in outcome.violations} & set(mutant.checks)
        if found:
            told = (directory / "account.txt").read_text()
            assert "The first: " in told
            for word in ("send    ", "handle  ", "commit  ", "FAULT   "):
                assert word in told
            assert "kill" in {item["kind"] for item in json.loads((directory / "schedule.json").read_text())}
            assert json.loads((directory / "log.json").read_text())
            break
    assert found


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
def test_wrong_words_are_told_before_anything_is_made(words: list[str], says: str, tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "faults", "--directory", tmp_path / "journals", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "journals").exists()


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
