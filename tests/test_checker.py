"""The checker of the fault suite finds each broken promise in a history that is otherwise good."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from faults import account
from faults.checker import check
from faults.history import Acquire, Commit, Disturbance, Effect, Entry, History, Letter, Look, Note, Send
from faults.known import Known
from faults.ownership import longest_overlap, longest_standstill
from faults.violation import Violation

ONE, TWO = 101, 202
"""Processes."""


def good() -> History:
    """Three events of one key; the first owner handles two of them and is killed, the second one handles the third."""
    history = History()
    for n in range(3):
        send = Send(1.0 + n, ("p", n), "key", n, 7 * n, "O", 1.1 + n, (10 + n, 0))
        history.sends[send.serial] = send
        history.log.append(Entry(0, (10 + n, 0), "key", n, ("p", n), 7 * n))
    history.acquires = [
        Acquire(0.1, 0.2, ONE, 0, 1, "OK", (0, 0), 0, rolled_back=False),
        Acquire(5.0, 5.1, TWO, 0, 2, "OK", (11, 0), 0, rolled_back=False),
    ]
    history.effects = [
        Effect(2.0 + n, 2.5 + n, ONE if n < 2 else TWO, 0, 1 if n < 2 else 2, (10 + n, 0), "key", n, ("p", n), 7 * n)
        for n in range(2)
    ]
    history.effects.append(Effect(5.2, 5.3, TWO, 0, 2, (12, 0), "key", 2, ("p", 2), 14))
    history.commits = [
        Commit(2.5, 2.6, ONE, 0, 1, "OK", (0, 0), (10, 0)),
        Commit(3.5, 3.6, ONE, 0, 1, "OK", (10, 0), (11, 0)),
        Commit(5.3, 5.4, TWO, 0, 2, "OK", (11, 0), (12, 0)),
    ]
    history.disturbances = [Disturbance("kill", 4.0, 4.0, ONE)]
    return history


def lost(history: History) -> None:
    del history.effects[2]


def skipped(history: History) -> None:
    del history.effects[0]


def out_of_order(history: History) -> None:
    first, second = history.effects[:2]
    history.effects[:2] = [
        replace(first, started=second.started, ended=second.ended),
        replace(second, started=first.started, ended=first.ended),
    ]


def went_back(history: History) -> None:
    history.acquires[1] = replace(history.acquires[1], offset=(10, 0))
    history.effects[2:2] = [replace(history.effects[1], started=5.15, ended=5.16, pid=TWO, token=2)]


def chain_broken(history: History) -> None:
    history.commits[1] = replace(history.commits[1], previous=(9, 0))


def two_commits_from_one_position(history: History) -> None:
    history.commits.insert(1, Commit(2.7, 2.8, ONE, 0, 1, "OK", (0, 0), (11, 0)))


def zombie_commits(history: History) -> None:
    history.commits.append(Commit(6.0, 6.1, ONE, 0, 1, "OK", (11, 0), (12, 0)))


def one_token_for_two(history: History) -> None:
    history.acquires[1] = replace(history.acquires[1], token=1)


def two_owners_at_once(history: History, until: float = 6.0) -> None:
    """The first owner is still at its second event when the next one begins it."""
    history.effects[1] = replace(history.effects[1], ended=until)
    history.effects.append(replace(history.effects[1], started=5.12, ended=5.18, pid=TWO, token=2))
    history.effects.sort(key=lambda effect: effect.ended)
    history.acquires[1] = replace(history.acquires[1], offset=(10, 0))
    history.commits[1] = Commit(5.18, 5.19, TWO, 0, 2, "OK", (10, 0), (11, 0))


def garbled(history: History) -> None:
    history.effects[0] = replace(history.effects[0], check=1)


def refused_but_there(history: History) -> None:
    history.sends["p", 1].outcome = "F"


def made_up(history: History) -> None:
    del history.sends["p", 1]


def doubled(history: History) -> None:
    history.log.append(replace(history.log[0], id=(13, 0)))


def doubled_and_trimmed(history: History) -> None:
    history.effects.append(replace(history.effects[0], id=(13, 0), token=2, pid=TWO, started=5.4, ended=5.5))


def position_fell(history: History) -> None:
    history.looks = [Look(3.7, 3.8, 0, 1, (11, 0)), Look(3.9, 4.0, 0, 1, (10, 0))]


def old_token_came_back(history: History) -> None:
    history.looks = [Look(5.5, 5.6, 0, 1, (12, 0))]


def failed_and_forgotten(history: History) -> None:
    history.effects[2] = replace(history.effects[2], result="failed")


def failed(history: History) -> None:
    failed_and_forgotten(history)
    history.letters = [Letter(0, (50, 0), (0, (12, 0)), 14)]


def two_letters(history: History) -> None:
    failed(history)
    history.letters.append(replace(history.letters[0], id=(51, 0)))


def letter_of_a_success(history: History) -> None:
    history.letters = [Letter(0, (50, 0), (0, (12, 0)), 14)]


def garbled_letter(history: History) -> None:
    failed(history)
    history.letters[0] = replace(history.letters[0], check=15)


def committed_before_it_was_handled(history: History) -> None:
    history.commits[1] = replace(history.commits[1], sent=3.2)


def committed_what_has_failed(history: History) -> None:
    history.effects.insert(1, replace(history.effects[1], started=2.9, ended=2.95, result="failed"))
    history.commits[1] = replace(history.commits[1], sent=2.96, answered=2.97)


def stored_before_it_was_handled(history: History) -> None:
    history.looks = [Look(3.1, 3.2, 0, 1, (11, 0))]


def began_ahead_of_what_was_handled(history: History) -> None:
    """An entry whose producer does not know whether it is sent, skipped where the owner changes."""
    send = history.sends["p", 2]
    send.outcome, send.id = "U", None
    history.acquires[1] = replace(history.acquires[1], offset=(12, 0))
    del history.effects[2], history.commits[2]


def of_unknown_outcome_and_not_handled(history: History) -> None:
    send = history.sends["p", 2]
    send.outcome, send.id = "U", None
    del history.effects[2], history.commits[2]


def one_commit_accepted_twice(history: History) -> None:
    history.commits.insert(1, replace(history.commits[0], sent=2.7, answered=2.8))


def handled_without_an_acquire(history: History) -> None:
    history.effects[2] = replace(history.effects[2], token=3)


def handled_before_the_acquire_was_answered(history: History) -> None:
    history.acquires[1] = replace(history.acquires[1], answered=5.25)


def handled_by_another_process_than_acquired(history: History) -> None:
    history.effects[2] = replace(history.effects[2], pid=303)


def fenced_and_handles_before_its_successor_does(history: History) -> None:
    history.disturbances.clear()
    history.effects.insert(2, replace(history.effects[2], started=5.12, ended=5.15, pid=ONE, token=1))


def two_owners_for_a_few_milliseconds(history: History) -> None:
    two_owners_at_once(history, until=5.123)


def begins_behind_a_repeated_commit(history: History) -> None:
    history.commits[1] = replace(history.commits[1], status="DUP")
    went_back(history)


def deleted(history: History) -> None:
    del history.effects[2], history.log[2]
    history.disturbances.append(Disturbance("delete", 3.5, 3.5, 0, 0, (12, 0)))


def test_a_good_history_breaks_nothing() -> None:
    assert check(good()) == []


@pytest.mark.parametrize(
    ("spoil", "broken"),
    [
        (lost, "C1"),
        (chain_broken, "C2"),
        (two_commits_from_one_position, "C2"),
        (skipped, "C3"),
        (out_of_order, "C3"),
        (went_back, "C3"),
        (zombie_commits, "C4"),
        (one_token_for_two, "C4"),
        (two_owners_at_once, "C5"),
        (garbled, "C6"),
        (refused_but_there, "C7"),
        (made_up, "C7"),
        (doubled, "C8"),
        (doubled_and_trimmed, "C8"),
        (position_fell, "C2"),
        (old_token_came_back, "C4"),
        (failed_and_forgotten, "C1"),
        (failed_and_forgotten, "C10"),
        (two_letters, "C10"),
        (letter_of_a_success, "C10"),
        (garbled_letter, "C10"),
        (deleted, "C1"),
        (committed_before_it_was_handled, "C2"),
        (committed_what_has_failed, "C2"),
        (stored_before_it_was_handled, "C2"),
        (began_ahead_of_what_was_handled, "C2"),
        (began_ahead_of_what_was_handled, "C1"),
        (of_unknown_outcome_and_not_handled, "C1"),
        (one_commit_accepted_twice, "C2"),
        (handled_without_an_acquire, "C4"),
        (handled_before_the_acquire_was_answered, "C4"),
        (handled_by_another_process_than_acquired, "C4"),
        (fenced_and_handles_before_its_successor_does, "C5"),
        (two_owners_for_a_few_milliseconds, "C5"),
        (begins_behind_a_repeated_commit, "C3"),
    ],
)
def test_each_broken_promise_is_found(spoil: Callable[[History], None], broken: str) -> None:
    history = good()
    spoil(history)
    assert broken in {violation.check for violation in check(history)}


def test_what_a_crash_of_the_server_took_must_have_been_reported() -> None:
    history = good()
    del history.effects[2], history.log[2]
    history.disturbances.append(Disturbance("crash", 3.5, 4.5))
    assert {violation.check for violation in check(history)} == {"C1"}
    history.notes.append(Note(5.0, TWO, "PartitionRewound", {"partition": -1, "reason": "rollback"}))
    assert {violation.check for violation in check(history)} == {"C1"}, "of another partition"
    history.notes.append(Note(5.0, TWO, "SequenceGap", {"partition": 0}))
    assert check(history) == []
    history.disturbances[-1] = Disturbance("crash", 9.0, 9.5)
    assert {violation.check for violation in check(history)} == {"C1"}, "long before the crash"


def test_what_was_skipped_before_the_log_was_destroyed_is_not_excused_by_that() -> None:
    history = good()
    del history.effects[1], history.log[:]
    history.disturbances.append(Disturbance("destroy", 6.0, 6.1))
    history.notes.append(Note(7.0, TWO, "LogReplaced", {"partition": 0}))
    assert any("had been skipped" in each.text for each in check(history) if each.check == "C1")
    history.disturbances[-1] = Disturbance("destroy", 4.5, 4.6)  # it waited then, and so did what came behind it
    assert "C1" not in {violation.check for violation in check(history)}
    history.disturbances[-1] = Disturbance("forget", 4.5, 4.6)
    assert "C1" in {violation.check for violation in check(history)}, "to forget a position takes no events"


def test_the_account_tells_of_the_earliest_violation_with_the_faults_and_sends_around_it() -> None:
    history = good()
    history.sends["p", 2].outcome, history.sends["p", 2].ended = "F", 9.0  # C7, at 5.2
    two_owners_at_once(history)  # C5, at 5.2
    history.effects[0] = replace(history.effects[0], check=1)  # C6, at 2.0
    history.disturbances.append(Disturbance("slow", -100.0, 200.0, partition=0))
    told = account.of(check(history), history)
    assert "The first: C6: " in told
    assert "FAULT   Disturbance(kind='slow'" in told, "it had begun long before"
    assert "send    Send(invoked=1.0" in told
    assert told.index("handle  Effect(started=2.0") < told.index("FAULT   Disturbance(kind='kill'")


def test_a_long_account_keeps_what_is_nearest_to_the_violation() -> None:
    history = good()
    history.notes = [Note(2.0 + n / 1000, ONE, "MemberJoined", {"number": n}) for n in range(2 * account.MOST_LINES)]
    told = account.of([Violation("C1", "lost", 2.6, 0)], history)
    assert told.count("note ") <= account.MOST_LINES
    assert "{'number': 600}" in told
    assert "{'number': 1}" not in told


def test_two_owners_at_once_are_no_wonder_where_the_old_one_was_frozen() -> None:
    history = good()
    two_owners_at_once(history)
    history.disturbances.append(Disturbance("freeze", 3.1, 5.9, ONE))
    assert check(history) == []
    assert longest_overlap(Known(history)) == pytest.approx(0.88), "but it is reported"


def test_a_partition_stands_still_while_an_event_waits_and_nobody_is_at_one() -> None:
    history = good()
    assert longest_standstill(Known(history)) == pytest.approx(1.7), "from the end of the second one"
    history.sends["p", 2].ended = 5.1
    history.effects[1] = replace(history.effects[1], started=2.7)
    assert longest_standstill(Known(history)) == pytest.approx(0.2), "the second one had to wait"


def test_one_who_was_frozen_begins_only_what_it_had_in_its_hand() -> None:
    history = good()
    late = replace(history.effects[1], started=5.4, ended=5.5, id=(11, 0))
    history.effects = [history.effects[0], history.effects[2], late]
    history.disturbances.append(Disturbance("freeze", 3.1, 5.35, ONE))
    assert "C5" not in {violation.check for violation in check(history)}
    history.disturbances[-1] = Disturbance("cut", 3.1, 5.35, ONE)
    assert "C5" in {violation.check for violation in check(history)}, "who is only cut off knows the time"
    history.disturbances[-1] = Disturbance("freeze", 2.1, 5.35, ONE)
    assert "C5" in {violation.check for violation in check(history)}, "the event before it has ended after the freeze"


def test_a_failed_event_with_its_dead_letter_breaks_nothing() -> None:
    history = good()
    failed(history)
    assert check(history) == []


def test_entries_that_were_deleted_must_all_have_been_reported() -> None:
    history = good()
    deleted(history)
    history.notes.append(Note(5.0, TWO, "LossDetected", {"partition": 0, "entries": 1}))
    assert check(history) == []
    del history.effects[1], history.log[1]
    history.commits[2] = replace(history.commits[2], previous=(10, 0))
    history.disturbances.append(Disturbance("delete", 3.5, 3.5, 0, 0, (11, 0)))
    assert any("2 entries were deleted unread, and the loss of 1" in each.text for each in check(history))


def fails_over(history: History, kind: str, partition: int = 0) -> None:
    history.disturbances.append(Disturbance(kind, 3.45, 4.5, partition=partition))


@pytest.mark.parametrize("kind", ["fail-over", "lossy fail-over"])
def test_a_fail_over_excuses_a_loss_only_where_nobody_waits_for_a_replica(kind: str) -> None:
    history = good()
    del history.effects[2], history.log[2]
    history.sends["p", 2].ended = 3.5
    fails_over(history, kind)
    assert {violation.check for violation in check(history)} == {"C1"}, "nobody has reported it"
    history.notes.append(Note(5.0, TWO, "SequenceGap", {"partition": 0}))
    assert {violation.check for violation in check(history)} == ({"C1"} if kind == "fail-over" else set())
    history.disturbances[-1] = replace(history.disturbances[-1], partition=1)
    assert {violation.check for violation in check(history)} == {"C1"}, "it was another server that failed over"
    history.disturbances[-1] = replace(history.disturbances[-1], partition=0)
    history.sends["p", 2].ended = 2.5
    assert {violation.check for violation in check(history)} == {"C1"}, "that had replicated long before"


def test_a_position_below_what_is_committed_is_seen_only_while_a_server_fails_over() -> None:
    history = good()
    history.looks = [Look(3.7, 3.8, 0, 1, (10, 0))]
    assert {violation.check for violation in check(history)} == {"C2"}
    fails_over(history, "fail-over")
    assert check(history) == []
    history.looks.append(Look(4.6, 4.7, 0, 1, (10, 0)))
    assert {violation.check for violation in check(history)} == {"C2"}, "it is over"


def test_a_rollback_must_have_been_told_with_its_range() -> None:
    history = good()
    history.disturbances.clear()
    fails_over(history, "lossy fail-over")
    again = replace(history.effects[1], started=4.8, ended=4.9)
    third = replace(history.effects[2], pid=ONE, token=1)
    history.effects[2:] = [again, third]
    history.acquires[1] = Acquire(4.6, 4.7, ONE, 0, 1, "OK", (10, 0), 0, rolled_back=False)
    history.commits[2:] = [
        Commit(4.9, 4.95, ONE, 0, 1, "OK", (10, 0), (11, 0)),
        Commit(5.3, 5.4, ONE, 0, 1, "OK", (11, 0), (12, 0)),
    ]
    assert {violation.check for violation in check(history)} == {"C2"}
    said = {"partition": 0, "reason": "rollback", "stored": "10-0"}
    history.notes = [Note(4.6, ONE, "PartitionRewound", said | {"expected": "10-5"})]
    assert {violation.check for violation in check(history)} == {"C2"}, "there was more"
    history.notes = [Note(4.6, ONE, "PartitionRewound", said | {"expected": "11-0"})]
    assert check(history) == []


def test_what_took_the_place_of_a_lost_entry_must_come_before_later_ones() -> None:
    """An event is read, is lost because it was not confirmed, and is sent again with a lower id."""
    history = good()
    history.disturbances.clear()
    fails_over(history, "fail-over")
    history.sends["p", 1].id, history.log[1] = (10, 5), replace(history.log[1], id=(10, 5))
    history.sends["p", 1].ended = 4.5
    del history.acquires[1], history.commits[1:]
    third = replace(history.effects[2], pid=ONE, token=1)
    history.effects[2] = third
    assert {violation.check for violation in check(history)} == {"C3"}
    again = replace(history.effects[1], id=(10, 5), started=4.8, ended=4.9)
    history.acquires.append(Acquire(4.6, 4.7, ONE, 0, 1, "OK", (10, 0), 0, rolled_back=False))
    history.effects[2:] = [again, third]
    assert check(history) == []
