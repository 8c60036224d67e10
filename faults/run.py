"""Plays a fault and judges it."""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from faults import account
from faults.checker import Violation, check
from faults.clock import Clock
from faults.history import History
from faults.known import Known
from faults.ownership import longest_overlap, longest_standstill
from faults.places import OneServer, Place
from faults.plays import Play, Scene
from faults.records import PARTITIONS
from faults.stage import Broken, Stage, Unplayable
from runnel.errors import ServerError
from runnel.server import EmbeddedServer, find_binary
from runnel.settings import Settings

ANSWER_WITHIN = 20.0
"""Seconds that the servers have to say what they hold, where a play was broken off."""


@dataclass
class Outcome:
    """What became of a play."""

    play: Play
    seed: int
    directory: Path
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)


async def perform(
    play: Play,
    seed: int,
    directory: Path,
    *,
    binary: str | Path | None,
    seconds: float | None = None,
    session: float | None = None,
    mutant: str | None = None,
) -> Outcome:
    """Play a fault.

    Arguments:
        play: which.
        seed: of its choices.
        directory: for everything that is written down.
        binary: the server.
        seconds: for how long; default: what the play says.
        session: the session timeout in seconds; default: what the play says.
        mutant: what workers and producers are, see ``mutants``.

    1. Start server, workers and producers, and wait until everything runs.
    2. Let the play do its worst.
    3. Wait until everything is in order again (C9).
    4. Check the history. If it is bad, write an account of the first violation beside it.

    Raises:
        Unplayable: something is missing for it.
    """
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  nothing else runs yet
    outcome = Outcome(play, seed, directory)
    started = time.monotonic()
    if session is None:
        session = play.session if play.session is not None else Settings(name="default").session_timeout
    environment = dict(play.environment) | ({"FAULTS_MUTANT": mutant} if mutant else {})
    place = _one_server(play, directory, binary) if play.place is None else play.place(binary)
    try:
        stage = Stage(directory, place, session, environment)
    except ServerError as error:
        raise Unplayable(f"the server does not start: {error}") from None
    scene = Scene(stage, random.Random(seed), play.seconds if seconds is None else seconds, play.proxied)
    history: History | None = None
    played = False
    try:
        await stage.open()
        for _ in range(play.workers):
            await scene.start_worker()
        for kind, rate in play.producers:
            await scene.start_producer(kind, rate)
        await stage.shared()
        await stage.handled(200)
        scene.began = time.monotonic()
        await play.act(scene)  # 2
        played = True
        history = await stage.finish()  # 3
        outcome.violations += leftovers(scene)
        scene.ended = time.monotonic()
        await stage.stop_workers()
    except (Broken, TimeoutError) as error:
        scene.ended = time.monotonic()
        outcome.violations.append(Violation("broken", str(error), time.monotonic()))
        history = await _what_is_known(stage)
    finally:
        for proxy in scene.proxies.values():
            await proxy.close()
        await stage.close()
        outcome.seconds = time.monotonic() - started
    assert history is not None
    _keep(directory / "schedule.json", history.disturbances)  # first: what judges it may fail
    _keep(directory / "log.json", history.log)
    _keep(directory / "letters.json", history.letters)
    outcome.violations += check(history)  # 4
    if played:
        outcome.violations += play.judge(history, scene)
        outcome.facts = {"drained after": stage.drained_after}
    outcome.facts = _facts(history) | outcome.facts | scene.figures
    if outcome.violations:
        (directory / "account.txt").write_text(account.of(outcome.violations, history))
    return outcome


async def _what_is_known(stage: Stage) -> History:
    """Everything; or, where no server answers, what the processes have written down."""
    try:
        return await asyncio.wait_for(stage.history(), ANSWER_WITHIN)
    except (Broken, TimeoutError):
        return stage.recorded()


def _keep(path: Path, items: Sequence[Any]) -> None:
    path.write_text("[" + ",\n".join(json.dumps(asdict(item)) for item in items) + "]\n")


def _one_server(play: Play, directory: Path, binary: str | Path | None) -> Place:
    clock = None
    if play.clock:
        try:
            clock = Clock(directory, find_binary(None if binary is None else str(binary)))
        except FileNotFoundError as error:
            raise Unplayable(str(error)) from None
        binary = clock.wrapper
    data = directory / "data"
    server = EmbeddedServer(
        binary=binary, data_dir=data, append_only=play.append_only, extra=play.server, start_timeout=30
    )
    return OneServer(server, data, clock)


def leftovers(scene: Scene) -> list[Violation]:
    """C9: no connection is left over.

    A worker has a link for commits, one for reads per slot group, one for heartbeats, one that listens, and may have
    one for ticks, one for notes of slow events, and one for dead letters; we have one, and the watcher has one. In a
    cluster, a link may have a connection to each node.
    """
    stage = scene.stage
    each = (6 if "FAULTS_POLICY" in stage.environment else 5) + stage.steps.keys.slot_groups
    most = (2 + each * len(stage.alive)) * stage.place.most_per_link
    clients = stage.place.connections()
    return [] if clients <= most else [Violation("C9", f"{clients} connections where {most} are enough")]


def _facts(history: History) -> dict[str, float]:
    known = Known(history)
    outcomes = Counter(send.outcome for send in history.sends.values())
    results = Counter(effect.result for effect in history.effects)
    distinct = len({effect.serial for effect in history.effects if effect.result == "done"})
    return {
        "sent": outcomes["O"],
        "refused": outcomes["F"],
        "unknown": outcomes["U"],
        "handled": distinct,
        "repeated": results["done"] - distinct,
        "failed": results["failed"],
        "dead letters": len(history.letters),
        "owners": len({(a.partition, a.token) for a in history.acquires if a.status == "OK"}) - PARTITIONS,
        "losses reported": sum(
            note.name in ("LossDetected", "SequenceGap", "LogReplaced")
            or (note.name == "PartitionRewound" and note.fields["reason"] != "reset")
            for note in history.notes
        ),
        "overlap": longest_overlap(known),
        "stood still": longest_standstill(known),
    }


def free_directory(base: Path) -> Path:
    """A directory for the journals of one run."""
    path = base / f"faults-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path.mkdir(parents=True)
    return path
