"""``runnel bench``, as a program: it measures, judges, and leaves nothing behind."""

import asyncio
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from program import Project, environment, until
from runnel import bench
from runnel._redis.link import Endpoint, Link
from runnel.bench import suite
from runnel.bench.rows import Absolute, Ratio, Row, Series, Side, rows
from runnel.cli import app as command_line

pytestmark = pytest.mark.processes

OURS, BARE = Side("ours.x", {}), Side("bare.x", {})


@pytest.fixture
def project(tmp_path: Path, redis_url: str, app_name: str, server_binary: str | Path | None) -> Iterator[Project]:
    made = Project(tmp_path, environment(redis_url, app_name, server_binary, tmp_path))
    yield made
    made.close()


def keys(redis_url: str) -> set[bytes]:
    async def ask() -> set[bytes]:
        link = Link(Endpoint(redis_url))
        found = set(await link.call("KEYS", "runnel:{runnel-bench-*"))
        await link.close()
        return found

    return asyncio.run(ask())


def test_it_measures_both_sides_and_removes_its_keys(project: Project, redis_url: str) -> None:
    project.send(1)
    done = project.run("bench", "process-default", "send-many", "send-alone", "--quick", "--events", "1000", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    assert list(found) == ["process-default", "send-many", "send-alone"]
    for row in found.values():
        assert len(row["ours"]) == len(row["beside"]) == len(row["values"]) == 1
        assert row["values"] == [row["ours"][0] / row["beside"][0]]
        assert row["ours"][0] > 0
    assert keys(redis_url) == set()
    assert project.waiting("printer") == 1  # what others have there is as it was


def test_the_table_has_a_line_for_each_row_and_says_why_one_is_absent(project: Project) -> None:
    done = project.run("bench", "memory", "server-log", "--quick", "--events", "1000", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    assert "memory" in done.stdout
    assert "no append-only file" in done.stdout


def test_the_private_server_has_an_append_only_file_where_that_is_measured(project: Project) -> None:
    done = project.run("bench", "server-log", "--embedded", "--quick", "--events", "2000", "--json", "--check")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"]["server-log"]["met"] is True


def test_a_private_cluster_and_a_private_replica_are_compared_with_one_server(project: Project) -> None:
    names = ["cluster-send", "cluster-send-cpu", "cluster-idle-commands", "replica-send-alone"]
    done = project.run("bench", *names, "--embedded", "--quick", "--events", "2000", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    assert list(found) == names
    assert all(row["ours"][0] > 0 and row["beside"][0] > 0 for row in found.values())


@pytest.mark.everywhere
def test_what_needs_no_loop_beside_it_is_measured_on_any_servers(
    project: Project, redis_url: str, topology: str
) -> None:
    done = project.run("bench", "process-default", "hot-partition", "--quick", "--events", "2000", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["rows"]
    assert len(found["hot-partition"]["values"]) == 1
    assert (found["process-default"]["absent"] == "") is (topology == "single")


def test_after_ctrl_c_nothing_is_left(project: Project, redis_url: str) -> None:
    running = project.start("bench", "process-default", "--events", "1000000")
    until(lambda: keys(redis_url), "it has not begun")
    assert running.stop(signal.SIGINT) == 130
    assert keys(redis_url) == set()
    mine = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [line for line in mine.splitlines() if "runnel.bench.side" in line and redis_url in line]


def test_a_row_that_is_not_there_is_a_mistake_of_use(project: Project) -> None:
    done = project.run("bench", "latency-20")
    assert done.returncode == 2
    assert 'There is no row "latency-20". Did you mean "latency-200"?' in " ".join(done.stderr.split())


def test_check_ends_with_status_1_where_a_row_misses(monkeypatch: pytest.MonkeyPatch, redis_url: str) -> None:
    [row] = bench.chosen(["send-alone"], replace(bench.QUICK, seconds=0.1))
    assert isinstance(row, Ratio)
    for bound, status in ((0.0, 1), (1e9, 0)):
        monkeypatch.setattr(bench, "chosen", lambda names, scale, bound=bound: [replace(row, bound=bound)])
        done = CliRunner().invoke(command_line, ["bench", "--quick", "--check", "--redis-url", redis_url])
        assert done.exit_code == status, done.output


# Turns


def run_without_server(
    monkeypatch: pytest.MonkeyPatch, compared: list[Row], rounds: int, take_turn: Callable[[Side], dict[str, float]]
) -> list[suite.Outcome]:
    made = suite.Suite({"plain": "redis://127.0.0.1:1"}, compared, say=lambda _: None)
    monkeypatch.setattr(made, "_take_turn", take_turn)
    monkeypatch.setattr(made, "_ask", lambda url, question: ["a server"])
    made.run(rounds)
    return made.outcomes


def test_the_sides_of_a_row_are_measured_side_by_side_and_in_turn_the_other_way_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    third = Side("ours.y", {})
    compared: list[Row] = [
        Ratio("a", "", "rate", OURS, BARE, None),
        Ratio("b", "", "cpu", OURS, BARE, None),
        Ratio("c", "", "rate", third, BARE, None),
    ]
    turns: list[str] = []

    def take_turn(side: Side) -> dict[str, float]:
        turns.append(side.function)
        return {"rate": 1.0, "cpu": 1.0}

    outcomes = run_without_server(monkeypatch, compared, 2, take_turn)
    bare, ours = BARE.function, OURS.function
    assert turns == [bare, ours, bare, third.function, ours, bare, third.function, bare]
    assert [outcome.values for outcome in outcomes] == [[1.0, 1.0]] * 3


def test_of_several_turns_in_a_round_the_median_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, bare = replace(OURS, turns=3), replace(BARE, turns=3)
    turns: list[str] = []

    def take_turn(side: Side) -> dict[str, float]:
        turns.append(side.function)
        return {"p99": {1: 7.0, 2: 900.0, 3: 8.0}[turns.count(side.function)] * (2 if side is ours else 1)}

    [found] = run_without_server(monkeypatch, [Ratio("a", "", "p99", ours, bare, None)], 1, take_turn)
    assert turns == [bare.function, ours.function, ours.function, bare.function, bare.function, ours.function]
    assert (found.beside, found.ours) == ([8.0], [16.0])


# The judgement


def outcome(row: Row, *rounds: dict[str, dict[str, float] | str]) -> suite.Outcome:
    made = suite.Outcome(row)
    for taken in rounds:
        suite._conclude(made, dict(taken))
    return made


@pytest.mark.parametrize(
    ("at_least", "bound", "ours", "met"),
    [(True, 2.0, 20.0, True), (True, 2.1, 20.0, False), (False, 2.0, 20.0, True), (False, 1.9, 20.0, False)],
)
def test_a_ratio_is_ours_by_the_other_and_its_median_counts(
    at_least: bool, bound: float, ours: float, met: bool
) -> None:
    row = Ratio("a", "", "rate", OURS, BARE, bound, at_least)
    rounds: list[Any] = [{OURS.label: {"rate": value}, BARE.label: {"rate": 10.0}} for value in (1.0, ours, 900.0)]
    found = outcome(row, *rounds)
    assert found.values == [0.1, ours / 10, 90.0]
    assert found.met is met


def test_an_absolute_figure_must_be_below_its_bound() -> None:
    row = Absolute("a", "", "mb", OURS, 90.0)
    assert outcome(row, {OURS.label: {"mb": 89.0}}).met is True
    assert outcome(row, {OURS.label: {"mb": 90.0}}).met is False


def test_of_a_series_the_dearest_step_counts_and_1_is_linear() -> None:
    points = [(1, Side("ours.x", {"n": 1})), (10, Side("ours.x", {"n": 2})), (20, Side("ours.x", {"n": 3}))]
    rates = dict(zip([side.label for _, side in points], (1000.0, 1000.0, 400.0), strict=True))
    found = outcome(Series("a", "", points), {label: {"rate": rate} for label, rate in rates.items()})
    assert found.values == [pytest.approx(1.25)]  # twice the size, two and a half times the time per event
    assert found.met is False


def test_what_could_not_be_measured_is_neither_met_nor_missed() -> None:
    found = outcome(Absolute("a", "", "mb", OURS, 90.0), {OURS.label: "no such thing"})
    assert (found.met, found.absent) == (None, "no such thing")


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in rows(bench.FULL)]
    assert len(set(names)) == len(names)
