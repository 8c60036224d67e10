"""The demo: its computation, its data, a verdict that is able to fail, and real runs."""

import io
import itertools
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from runnel.demo import play, run, team
from runnel.demo.carryover import ON_TIME, Lateness, carry, sequentially
from runnel.demo.flights import Departures, Flight, load
from runnel.demo.journal import Entry, Journal, Reader
from runnel.demo.screen import show
from runnel.demo.verdict import Kill, Verdict, judge, take_over
from runnel.errors import ConfigurationError

HEADER = "year,month,day,dep_delay,arr_delay,carrier,tailnum,origin,dest\n"


def flight(
    number: int = 1, *, tail: str = "N1", day: str = "2013-01-01", dep: int | None = 0, arr: int | None = 0
) -> Flight:
    return Flight(
        number=number, day=day, tail=tail, carrier="UA", origin="JFK", dest="SFO", dep_delay=dep, arr_delay=arr
    )


@pytest.fixture(scope="module")
def january() -> Departures:
    return load()


# The computation


def test_an_arrival_delay_is_carried_into_the_next_departure() -> None:
    late = Lateness("2013-01-01", 30)
    assert carry(late, flight(dep=50, arr=40)) == (30, Lateness("2013-01-01", 40))
    assert carry(late, flight(dep=20, arr=5)) == (20, Lateness("2013-01-01", 5))


def test_nothing_is_carried_by_who_leaves_early_or_was_not_late_or_has_slept() -> None:
    late = Lateness("2013-01-01", 30)
    assert carry(late, flight(dep=-3))[0] == 0
    assert carry(ON_TIME, flight(dep=50))[0] == 0
    assert carry(late, flight(dep=50, day="2013-01-02"))[0] == 0


def test_a_cancelled_flight_carries_nothing_and_one_that_lands_early_or_elsewhere_leaves_no_delay() -> None:
    late = Lateness("2013-01-01", 30)
    on_time = Lateness("2013-01-01", 0)
    assert carry(late, flight(dep=None, arr=None)) == (0, on_time)
    assert carry(late, flight(dep=10, arr=-15)) == (10, on_time)
    assert carry(late, flight(dep=10, arr=None)) == (10, on_time)


@pytest.mark.parametrize("state", [ON_TIME, Lateness("2013-01-01", 30)])
def test_a_state_is_read_as_it_was_written(state: Lateness) -> None:
    assert Lateness.parse(str(state)) == state


def test_the_result_is_another_one_in_another_order() -> None:
    flights = [flight(1, arr=30), flight(2, dep=25, arr=10), flight(3, dep=60)]
    assert sequentially(flights) == {1: 0, 2: 25, 3: 10}
    assert sequentially([flights[1], flights[0], flights[2]]) == {2: 0, 1: 0, 3: 30}


# The data


def test_the_flights_of_january_2013_are_loaded_with_their_gaps(january: Departures) -> None:
    assert len(january.flights) == 26_849
    assert january.unattributed == 155
    assert january.cancelled == 521 - 155
    assert january.aircraft == 3_148
    first = january.flights[0]
    assert first == Flight(
        number=1, day="2013-01-01", tail="N14228", carrier="UA", origin="EWR", dest="IAH", dep_delay=2, arr_delay=11
    )
    numbers = [each.number for each in january.flights]
    assert numbers == sorted(set(numbers))


def test_a_limit_counts_rows_of_the_file() -> None:
    departures = load(limit=3_000)
    assert len(departures.flights) + departures.unattributed == 3_000


def test_other_flights_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "flights.csv"
    path.write_text(HEADER + "2014,2,3,NA,NA,AA,N7,LGA,ORD\n2014,2,3,5,-6,AA,NA,LGA,ORD\n")
    departures = load(path)
    assert departures.unattributed == 1
    assert departures.flights == [
        Flight(
            number=1,
            day="2014-02-03",
            tail="N7",
            carrier="AA",
            origin="LGA",
            dest="ORD",
            dep_delay=None,
            arr_delay=None,
        )
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEADER + "2014,2,3,late,NA,AA,N7,LGA,ORD\n", "Row 1 of .* is no flight .*late"),
        ("tailnum,year\nN7,2014\n", "Row 1 of .* is no flight .*month"),
        (HEADER, "no flights of known aircraft"),
    ],
)
def test_a_file_that_is_no_flights_is_refused_with_a_reason(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "flights.csv"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load(tmp_path / "flights.csv.gz")


# The journal


def test_a_journal_is_followed_while_it_grows_and_an_unfinished_line_is_left_alone(tmp_path: Path) -> None:
    entries = [Entry(n, 5, f"1-{n}", 3, 7, os.getpid(), 0.25, 0.5) for n in range(4)]
    reader = Reader(tmp_path, os.getpid())
    assert not reader.exists
    journal = Journal(tmp_path)
    assert reader.exists
    assert reader.read() == []
    journal.append(entries[0])
    journal.append(entries[1])
    assert reader.read() == entries[:2]
    (path,) = tmp_path.iterdir()
    torn = entries[2].line()
    with path.open("ab") as file:
        file.write(torn[:20])
    assert reader.read() == []
    with path.open("ab") as file:
        file.write(torn[20:])
    assert reader.read() == [entries[2]]


# The verdict. Worker 1 owns partition 0 under token 10, and worker 2 owns partition 1. Worker 1 is killed at 4.5, when
# it has committed its first event, and worker 2 goes on with partition 0 under token 11, first with a repeated event.

FLIGHTS = [
    flight(1, tail="A", arr=30),
    flight(2, tail="B", arr=20),
    flight(3, tail="A", dep=25, arr=60),
    flight(4, tail="B", dep=10, arr=5),
    flight(5, tail="A", dep=70, arr=15),
    flight(6, tail="B", dep=10),
    flight(7, tail="A", dep=20),
]
KILL = Kill(worker=1, at=4.5, committed={0: "100-1", 1: "100-2"})


def entry(number: int, start: float, *, worker: int, token: int, carried: int | None = None) -> Entry:
    right = sequentially(FLIGHTS).get(number, 0)
    return Entry(
        number=number,
        carried=right if carried is None else carried,
        event=f"100-{number}",
        partition=(number + 1) % 2,
        token=token,
        worker=worker,
        start=start,
        end=start + 0.1,
    )


def history() -> list[Entry]:
    return [
        entry(1, 1.0, worker=1, token=10),
        entry(2, 2.0, worker=2, token=9),
        entry(3, 3.0, worker=1, token=10),
        entry(4, 4.0, worker=2, token=9),
        entry(3, 5.25, worker=2, token=11),
        entry(5, 6.0, worker=2, token=11),
        entry(6, 7.0, worker=2, token=9),
        entry(7, 8.0, worker=2, token=11),
    ]


def shown(verdict: Verdict) -> str:
    text = io.StringIO()
    show(Console(file=text, width=200), verdict, FLIGHTS)
    return text.getvalue()


def test_a_run_with_an_event_that_is_repeated_by_the_next_owner_passes() -> None:
    entries = history()
    for order in (entries, entries[::-1]):
        verdict = judge(FLIGHTS, order, KILL)
        assert verdict.faults == []
        assert verdict.exit_status == 0
        assert (verdict.sent, verdict.processed, verdict.repeated, verdict.lost) == (7, 7, 1, 0)
        assert (verdict.aircraft, verdict.in_order, verdict.same) == (2, 2, 7)
        assert verdict.take_over is not None
        assert verdict.take_over.orphaned == 1
        assert verdict.take_over.after == (0.75,)
        assert dict(verdict.carried) == {"A": 25 + 60 + 15, "B": 10 + 5}
        assert sum(verdict.carried.values()) == verdict.carried_sequentially
    assert "Passed" in shown(verdict)


def test_a_run_without_any_repeated_event_passes() -> None:
    entries = [each for each in history() if each.start != 5.25]
    assert judge(FLIGHTS, entries, KILL).exit_status == 0


def test_several_events_may_be_repeated_in_their_order() -> None:
    entries = [
        replace(each, start=4.2, end=4.3, worker=1, token=10) if each.start == 6.0 else each for each in history()
    ]
    entries.append(entry(5, 6.0, worker=2, token=11))
    verdict = judge(FLIGHTS, entries, KILL)
    assert verdict.faults == []
    assert verdict.repeated == 2


def without_the_last(entries: list[Entry]) -> list[Entry]:
    return entries[:-1]


def without_one_in_the_middle(entries: list[Entry]) -> list[Entry]:
    return [each for each in entries if each.number != 5]


def swapped(entries: list[Entry]) -> list[Entry]:
    by_start = {6.0: 8.0, 8.0: 6.0}
    starts = [by_start.get(each.start, each.start) for each in entries]
    return [replace(each, start=start, end=start + 0.1) for each, start in zip(entries, starts, strict=True)]


def repeated_by_the_same_owner(entries: list[Entry]) -> list[Entry]:
    return [*entries, entry(4, 4.2, worker=2, token=9)]


def repeated_late_after_the_change(entries: list[Entry]) -> list[Entry]:
    return [*entries, entry(5, 9.0, worker=2, token=11)]


def repeated_with_a_gap(entries: list[Entry]) -> list[Entry]:
    return [*without_the_one_at(entries, 5.25), entry(1, 5.25, worker=2, token=11)]


def repeated_although_committed(entries: list[Entry]) -> list[Entry]:
    return [*entries, entry(1, 5.0, worker=2, token=11)]


def by_an_old_owner(entries: list[Entry]) -> list[Entry]:
    return [replace(each, worker=1, token=10) if each.number == 7 else each for each in entries]


def two_at_once(entries: list[Entry]) -> list[Entry]:
    return [replace(each, end=6.5) if each.start == 5.25 else each for each in entries]


def another_value(entries: list[Entry]) -> list[Entry]:
    return [replace(each, carried=each.carried + 1) if each.number == 6 else each for each in entries]


def another_value_when_repeated(entries: list[Entry]) -> list[Entry]:
    return [replace(each, carried=0) if each.start == 5.25 else each for each in entries]


def one_that_was_never_sent(entries: list[Entry]) -> list[Entry]:
    return [*entries, entry(99, 9.0, worker=2, token=11)]


def without_the_one_at(entries: list[Entry], start: float) -> list[Entry]:
    return [each for each in entries if each.start != start]


@pytest.mark.parametrize(
    ("harm", "fault"),
    [
        (without_the_last, "lost: flight 7 of aircraft A was never processed"),
        (without_one_in_the_middle, "lost: flight 5 of aircraft A was never processed"),
        (without_one_in_the_middle, "out of order: aircraft A: flight 7 was processed before flight 5"),
        (swapped, "out of order: aircraft A: flight 7 was processed before flight 5"),
        (repeated_by_the_same_owner, "flight 4 was processed again, after flight 4, by the same owner"),
        (repeated_late_after_the_change, "flight 5 was processed again, after flight 7, by the same owner"),
        (repeated_with_a_gap, "flight 1 was processed again although it was committed"),
        (repeated_although_committed, "flight 1 was processed again although it was committed"),
        (by_an_old_owner, "flight 7 was processed under a token older than that of flight 5"),
        (two_at_once, "flight 5 was started before flight 3 had ended"),
        (another_value, "different: flight 6: 6 min, not 5"),
        (another_value_when_repeated, "different: flight 3: 0 min, not 25"),
        (one_that_was_never_sent, "unknown: flight 99 was never sent"),
    ],
)
def test_a_run_that_breaks_the_promise_fails(harm: Callable[[list[Entry]], list[Entry]], fault: str) -> None:
    verdict = judge(FLIGHTS, harm(history()), KILL)
    assert any(fault in each for each in verdict.faults), verdict.faults
    assert verdict.exit_status == 1
    text = shown(verdict)
    assert "FAILED" in text
    assert "Passed" not in text
    assert fault in text


def test_the_faults_are_counted() -> None:
    assert judge(FLIGHTS, without_one_in_the_middle(history()), KILL).lost == 1
    assert judge(FLIGHTS, swapped(history()), KILL).in_order == 1
    assert judge(FLIGHTS, another_value(history()), KILL).same == 6
    nothing = judge(FLIGHTS, [], KILL)
    assert (nothing.processed, nothing.lost, nothing.same) == (0, 7, 0)
    assert "lost: 4 more" in nothing.faults


def test_a_run_without_a_kill_or_a_take_over_shows_nothing_and_fails() -> None:
    entries = [replace(each, worker=2, token=9) for each in history() if each.start != 5.25]
    assert judge(FLIGHTS, entries, None).faults == ["no worker was killed, so that nothing is shown"]
    (fault,) = judge(FLIGHTS, entries, KILL).faults
    assert "nothing was taken over" in fault


def test_the_time_to_take_over_counts_from_the_kill_for_each_partition_of_the_killed_worker_only() -> None:
    started = itertools.count(10)

    def at(partition: int, worker: int) -> Entry:
        start = float(next(started))
        return Entry(1, 0, "1-1", partition, 1, worker, start, start)

    before = [at(0, 2), at(0, 1), at(1, 1), at(2, 2)]  # partition 0 was worker 2's first, and then worker 1's
    kill = Kill(worker=1, at=13.5, committed={})
    assert take_over(before, kill).after == ()
    taken = take_over([*before, at(2, 2), at(0, 2), at(1, 2), at(0, 2)], kill)
    assert taken.orphaned == 2
    assert taken.after == (1.5, 2.5)


# Real runs


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this process makes its temporary directories."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"  # nobody has asked for its status yet


def wait_until(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        time.sleep(0.01)


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_a_real_run_on_some_flights_passes_and_leaves_nothing_behind(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNEL_PARTITION_COUNT", "3")  # the user's settings change nothing
    verdict, notes = io.StringIO(), io.StringIO()
    status = run(Console(file=verdict, width=200), notes=Console(file=notes, width=200), rate=1_500, limit=3_000)
    assert status == 0, verdict.getvalue() + notes.getvalue()
    assert re.search(r"lost +0\n +order kept +1,435  of 1,435 aircraft", verdict.getvalue())
    assert "Passed" in verdict.getvalue()
    killed = re.search(r"worker (\d+) killed with SIGKILL after 1,[45]\d\d flights", notes.getvalue())
    stopped = re.search(r"worker (\d+) stopped with SIGTERM", notes.getvalue())
    assert killed is not None
    assert stopped is not None
    assert killed[1] != stopped[1]
    assert is_gone(int(killed[1]))
    assert is_gone(int(stopped[1]))
    assert list(temporary.iterdir()) == []


@pytest.mark.processes
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else "",
)
def test_a_demo_that_is_interrupted_takes_its_workers_and_its_server_with_it(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", "runnel", "demo"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        try:
            lines = iter(process.stderr.readline, b"")
            started = next(found for line in lines if (found := re.search(rb"workers (\d+) and (\d+) started", line)))
            workers = [int(started[1]), int(started[2])]
            assert not any(is_gone(pid) for pid in workers)
        finally:
            process.send_signal(number)
        assert process.wait(20) == status
    wait_until(lambda: all(is_gone(pid) for pid in workers), "the workers are gone")
    wait_until(lambda: not list(tmp_path.glob("runnel-server-*")), "the server is gone")
    if number != signal.SIGKILL:
        assert list(tmp_path.iterdir()) == []


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_a_worker_that_ends_by_itself_ends_the_demo_with_what_it_said(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team, "COMMAND", (sys.executable, "-c", "raise SystemExit('no fuel')"))
    with pytest.raises(team.WorkerEnded, match=r"status 1(.|\n)*no fuel"):
        run(Console(file=io.StringIO()), notes=Console(file=io.StringIO()), limit=10)
    assert list(temporary.iterdir()) == []


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_workers_that_do_nothing_fail_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "COMMAND", (sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr(play, "STALLED", 0.2)
    verdict, notes = io.StringIO(), io.StringIO()
    assert run(Console(file=verdict), notes=Console(file=notes), limit=10) == 1
    assert "giving up" in notes.getvalue()
    assert re.search(r"lost +10\n", verdict.getvalue())


FORGETFUL = """
import sys
from runnel.cli import main
from runnel.demo import app, carryover

app.carry = lambda before, flight: carryover.carry(carryover.ON_TIME, flight)
sys.argv = ["runnel", "worker", "runnel.demo.app:app"]
main()
"""
"""A worker that has forgotten the flight before."""


@pytest.mark.processes
@pytest.mark.timeout(60)
def test_workers_that_compute_wrongly_fail_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "COMMAND", (sys.executable, "-c", FORGETFUL))
    verdict = io.StringIO()
    assert run(Console(file=verdict, width=200), notes=Console(file=io.StringIO()), rate=2_000, limit=2_000) == 1
    assert re.search(r"lost +0\n", verdict.getvalue())
    assert re.search(r"different: flight \d+: 0 min, not \d+", verdict.getvalue())
