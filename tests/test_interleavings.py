"""Schedules of members, producers and faults, drawn at random: see ``simulation.schedules``.

A run plays the same ones each time, as many as fit into a run of all tests. More of them, or others:

    RUNNEL_TEST_SCHEDULES=20000 RUNNEL_TEST_SEED=7 pytest tests/test_interleavings.py -k whatever

Known races are in ``test_races.py``.
"""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

from simulation.judge import Violation
from simulation.laboratory import Laboratory
from simulation.mutants import MUTANTS
from simulation.schedules import play

SCHEDULES = int(os.environ.get("RUNNEL_TEST_SCHEDULES", "600"))
SEED = int(os.environ.get("RUNNEL_TEST_SEED", "0"))


@pytest.mark.timeout(120 + SCHEDULES)
def test_whatever_happens_order_is_kept_and_nothing_is_lost_in_silence(server_binary: str | Path | None) -> None:
    """Two thirds of the schedules destroy nothing. As many at once as there are processors."""
    several = max(2, os.cpu_count() or 1)
    seeds = count(SEED * several)
    hunts = []
    for damage, share in (([], SCHEDULES * 2 // 3), (["--damage"], SCHEDULES // 3)):
        for _ in range(several):
            command = [sys.executable, "-m", "simulation.schedules", "--server", str(server_binary), *damage]
            command += ["--schedules", str(max(1, share // several)), "--seed", str(next(seeds))]
            hunts.append(
                subprocess.Popen(
                    command,
                    env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    told = [hunt.communicate()[0] for hunt in hunts]
    for hunt, text in zip(hunts, told, strict=True):
        assert hunt.returncode == 0, f"{hunt.args}\n{text}"


@pytest.mark.parametrize("name", MUTANTS)
def test_schedules_find_what_is_wrong(lab: Laboratory, name: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(Violation, match=mutant.breaks):
        play(lab, 1000, SEED, mutant=mutant)
