"""The fault suite finds a mutant, from a real process to the verdict. `python -m faults --mutants` breeds them all."""

import shutil
import time
from pathlib import Path

import pytest
import redis
from faults.clock import Clock
from faults.leak import rows_of
from faults.mutants import MUTANTS
from faults.plays import PLAYS, SHORT
from faults.run import perform

from program import until
from runnel.server import EmbeddedServer, find_binary

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
            assert (directory / "account.txt").exists()
            break
    assert found


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
