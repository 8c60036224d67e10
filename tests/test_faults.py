"""The fault suite finds a mutant, from a real process to the verdict. `python -m faults --mutants` breeds them all."""

from pathlib import Path

import pytest
from faults.leak import rows_of
from faults.mutants import MUTANTS
from faults.plays import PLAYS, SHORT
from faults.run import perform

pytestmark = pytest.mark.anyio


def test_each_mutant_has_a_play_and_what_is_always_played_exists() -> None:
    assert {mutant.play for mutant in MUTANTS.values()} <= PLAYS.keys()
    assert set(SHORT) <= PLAYS.keys()


@pytest.mark.processes
async def test_a_worker_whose_lease_revives_is_found(server_binary: str | Path | None, tmp_path: Path) -> None:
    mutant = MUTANTS["revived-lease"]
    outcome = await perform(
        PLAYS[mutant.play], 7, tmp_path / "play", binary=server_binary, seconds=0, mutant="revived-lease"
    )
    assert {violation.check for violation in outcome.violations} & set(mutant.checks)
    assert (tmp_path / "play" / "account.txt").exists()


@pytest.mark.parametrize(("per_second", "flat"), [(0, True), (100, True), (50_000, False)])
def test_a_leak_is_what_grows_steadily_and_not_what_jumps(per_second: int, flat: bool) -> None:
    points = [(float(n), 50e6 + per_second * n + (30e6 if n % 40 == 0 else 0)) for n in range(240)]
    (row,) = rows_of({"worker: RSS of 0": points})
    assert row.flat is flat
