"""What Runnel decides: plain functions, so plain tests, without a server and without an event loop."""

import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal, localcontext
from enum import Enum, IntEnum
from importlib.machinery import ModuleSpec
from itertools import islice
from types import ModuleType
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runnel._core import backoff, entry_ids, routing, schedules
from runnel._core.assignment import assign
from runnel._core.lease import DEADLINE_SHARE, Lease
from runnel._core.partitions import PartitionState, Step, advance
from runnel._core.reconcile import Plan, reconcile
from runnel.errors import ConfigurationError, PartitionKeyError

# Routing


class Colour(Enum):
    RED = "red"


class Level(IntEnum):
    HIGH = 42


class Flag(str, Enum):
    RED = "red"


# Literals on purpose. If one of them changes, the events of a key part from those that are stored already.
PINNED = [
    # key, canonical bytes, partition of 16, partition of 7
    ("", b"", 9, 6),
    ("N14228", b"N14228", 2, 6),
    ("Zürich", b"Z\xc3\xbcrich", 9, 0),
    ("🛩", b"\xf0\x9f\x9b\xa9", 5, 3),
    (0, b"0", 12, 1),
    (42, b"42", 9, 3),
    (-7, b"-7", 15, 0),
    (2**70, b"1180591620717411303424", 7, 6),
    (b"\x00\xff", b"\x00\xff", 13, 0),
    (True, b"true", 10, 3),
    (False, b"false", 10, 3),
    (UUID("12345678-1234-5678-1234-567812345678"), b"12345678-1234-5678-1234-567812345678", 10, 6),
    (Decimal("1.50"), b"1.5", 13, 0),
    (datetime(2013, 1, 1, 5, 17), b"2013-01-01T05:17:00", 10, 0),
    (datetime(2013, 1, 1, 5, 17, tzinfo=UTC), b"2013-01-01T05:17:00+00:00", 15, 6),
    (date(2013, 1, 1), b"2013-01-01", 12, 1),
    (time(5, 17), b"05:17:00", 2, 5),
]


@pytest.mark.parametrize(("key", "canonical", "of_16", "of_7"), PINNED)
def test_a_key_is_routed_to_the_same_partition_for_ever(key: object, canonical: bytes, of_16: int, of_7: int) -> None:
    assert routing.canonical_bytes(key) == canonical
    assert routing.partition_of(key, 16) == of_16
    assert routing.partition_of(key, 7) == of_7


def test_the_default_hasher_is_xxh64_with_seed_0() -> None:
    assert routing.xxh64("") == 0xEF46DB3751D8E999  # the vector of xxHash's own specification
    assert routing.xxh64("N14228") == 2139628999675301938
    assert routing.hasher_name(routing.DEFAULT_HASHER) == "xxh64"


def test_an_enum_is_routed_like_its_value() -> None:
    assert routing.canonical_bytes(Colour.RED) == b"red"
    assert routing.canonical_bytes(Level.HIGH) == b"42"
    assert routing.canonical_bytes(Flag.RED) == b"red"


@pytest.mark.parametrize("key", [None, 1.5, float("nan"), ("a", "b"), ["a"], object(), bytearray(b"a")])
def test_a_key_without_canonical_bytes_is_refused(key: object) -> None:
    with pytest.raises(PartitionKeyError):
        routing.partition_of(key, 16)


@pytest.mark.parametrize(
    "equal",
    [
        [Decimal("1"), Decimal("1.0"), Decimal("1.00"), Decimal("0.1E1")],
        [Decimal("0"), Decimal("-0.00"), Decimal("0E5")],
        [Decimal("1E+30"), Decimal(10**30), Decimal("1" + "0" * 30 + ".000")],
        [
            datetime(2013, 1, 1, 5, 17, tzinfo=UTC),
            datetime(2013, 1, 1, 6, 17, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2013, 1, 1, 0, 17, tzinfo=timezone(timedelta(hours=-5))),
        ],
    ],
)
def test_equal_keys_are_routed_alike_however_they_are_written(equal: list[Any]) -> None:
    assert all(key == equal[0] for key in equal)
    assert len({routing.canonical_bytes(key) for key in equal}) == 1


def test_a_decimal_is_routed_by_all_of_its_digits() -> None:
    long = Decimal("0.1234567890123456789012345678901234567890")
    assert routing.canonical_bytes(long) == str(long).encode()[:-1]
    with localcontext() as context:
        context.prec = 3
        assert routing.canonical_bytes(long) == str(long).encode()[:-1]


def test_a_string_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(PartitionKeyError, match="xxh64 failed"):
        routing.partition_of("\ud800", 16)


@pytest.mark.parametrize(
    ("attributes", "module"),
    [
        ({"__file__": "/srv/app/example.py", "__spec__": None}, "example"),
        ({"__file__": "/srv/app/shop/example.py", "__spec__": ModuleSpec("shop.example", None)}, "shop.example"),
        ({"__spec__": None}, "__main__"),
    ],
    ids=["python example.py", "python -m shop.example", "python -c"],
)
def test_a_hasher_is_called_as_workers_call_it_where_its_module_is_run_as_a_script(
    monkeypatch: pytest.MonkeyPatch, attributes: dict[str, Any], module: str
) -> None:
    def by_region(key: str) -> int:
        return 0

    main = ModuleType("__main__")
    main.__dict__.update(attributes)
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(by_region, "__module__", "__main__")
    monkeypatch.setattr(by_region, "__qualname__", "by_region")
    assert routing.hasher_name(by_region) == f"{module}.by_region"


def test_a_hasher_of_the_user_decides_and_may_be_negative() -> None:
    assert routing.partition_of("abc", 4, hasher=len) == 3
    assert routing.partition_of("abc", 4, hasher=lambda key: -1) == 3


@pytest.mark.parametrize("answer", [1.0, "3", None])
def test_a_hasher_that_gives_no_int_is_refused(answer: object) -> None:
    # 1. hasher gives 7.0  2. 7.0 % 4 is 3.0  3. the event lands in log:3.0, which nobody reads
    with pytest.raises(PartitionKeyError, match="failed for the key 'abc'"):
        routing.partition_of("abc", 4, hasher=lambda key: answer)  # type: ignore[arg-type, return-value]


def test_a_hasher_that_fails_is_named() -> None:
    def hash_of_flights(key: object) -> int:
        raise KeyError(key)

    with pytest.raises(PartitionKeyError, match=r"hash_of_flights failed for the key 'abc'"):
        routing.partition_of("abc", 4, hasher=hash_of_flights)


# Entry ids


def test_entry_ids_are_parsed_and_written() -> None:
    assert entry_ids.parse(b"1700000000000-12") == (1700000000000, 12)
    assert entry_ids.parse("1700000000000") == (1700000000000, 0)
    assert entry_ids.text((1700000000000, 12)) == b"1700000000000-12"
    assert entry_ids.parse(entry_ids.BEGINNING) == (0, 0)
    assert entry_ids.parse("9-10") > entry_ids.parse("9-9")  # as numbers, not as text


@pytest.mark.parametrize("text", ["", "$", "-", "abc", "1-x", "1-2-3"])
def test_what_is_no_entry_id_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is not an entry id"):
        entry_ids.parse(text)


def test_the_ids_of_a_batch_are_counted_back_from_the_last() -> None:
    assert entry_ids.consecutive(b"17-5", 3) == ["17-3", "17-4", "17-5"]
    assert entry_ids.consecutive(b"17-0", 1) == ["17-0"]


# Back-off


def test_delays_double_up_to_the_bound() -> None:
    assert list(islice(backoff.delays(0.1, 1.0, lambda: 1.0), 6)) == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert list(islice(backoff.delays(0.1, 1.0, lambda: 0.0), 6)) == [0.05, 0.1, 0.2, 0.4, 0.5, 0.5]


@given(first=st.floats(0.001, 5), most=st.floats(5, 60), draws=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_a_delay_is_between_half_and_all_of_its_bound(first: float, most: float, draws: list[float]) -> None:
    random = iter(draws)
    for attempt, delay in enumerate(islice(backoff.delays(first, most, lambda: next(random)), len(draws))):
        bound = min(most, first * 2**attempt)
        assert 0.5 * bound * 0.999 <= delay <= bound * 1.001


# The life of a partition

S, T = PartitionState, Step


@pytest.mark.parametrize(
    ("steps", "ends"),
    [
        ([T.ACQUIRE, T.DRAIN, T.RELEASE], S.RELEASED),
        ([T.DRAIN, T.RELEASE], S.RELEASED),
        ([T.ACQUIRE, T.PARK, T.DRAIN, T.RELEASE], S.RELEASED),
        ([T.PARK], S.PARKED),  # granted with a mark of its earlier owner
        ([T.LOSE], S.LOST),
        ([T.ACQUIRE, T.LOSE], S.LOST),
        ([T.ACQUIRE, T.PARK, T.LOSE], S.LOST),
        ([T.ACQUIRE, T.DRAIN, T.LOSE], S.LOST),
    ],
)
def test_a_partition_goes_the_way_of_the_table(steps: list[Step], ends: PartitionState) -> None:
    state = PartitionState.GRANTED
    for step in steps:
        state = advance(state, step)
    assert state is ends


@pytest.mark.parametrize("end", [S.RELEASED, S.LOST])
@pytest.mark.parametrize("step", list(Step))
def test_nothing_follows_the_end_of_a_partition(end: PartitionState, step: Step) -> None:
    with pytest.raises(AssertionError, match=f"{end.value} cannot {step.value}"):
        advance(end, step)


def test_a_partition_is_not_released_before_it_is_drained() -> None:
    for state in (S.GRANTED, S.RUNNING, S.PARKED):
        with pytest.raises(AssertionError):
            advance(state, T.RELEASE)


# Reconciliation


def test_reconcile_does_nothing_when_we_hold_what_we_own() -> None:
    assert reconcile({1: 10, 2: 11}, {}, {1: 10, 2: 11}, {}) == Plan((), (), ())


def test_reconcile_takes_what_is_granted_and_drains_what_is_revoked() -> None:
    assert reconcile({1: 10}, {}, {2: 12}, {1: 10}) == Plan(lose=(), drain=(1,), acquire=((2, 12),))


def test_reconcile_drains_once() -> None:
    assert reconcile({1: 10}, {1: 10}, {}, {1: 10}) == Plan((), (), ())


def test_reconcile_loses_what_we_do_not_own_any_more_even_while_it_drains() -> None:
    assert reconcile({1: 10, 2: 11}, {2: 11}, {}, {}) == Plan(lose=(1, 2), drain=(), acquire=())


def test_reconcile_begins_anew_under_a_new_token() -> None:
    assert reconcile({1: 10}, {}, {1: 20}, {}) == Plan(lose=(1,), drain=(), acquire=((1, 20),))


def test_reconcile_lets_a_drain_end_although_its_revocation_was_withdrawn() -> None:
    assert reconcile({1: 10}, {1: 10}, {1: 10}, {}) == Plan((), (), ())


def test_reconcile_hands_back_a_grant_that_it_never_heard_of() -> None:
    # 1. p1 is granted to us; the answer is lost  2. p1 shall go to another  3. we hold nothing that could be drained:
    # unless it is handed back at once, p1 stands still until the grace period is over
    assert reconcile({}, {}, {}, {1: 10}) == Plan((), (), (), release=((1, 10),))
    assert reconcile({1: 9}, {}, {}, {1: 10}) == Plan(lose=(1,), drain=(), acquire=(), release=((1, 10),))


tokens = st.integers(1, 3)  # few, so that they coincide
partitions = st.dictionaries(st.integers(0, 5), tokens)


@st.composite
def moments(draw: st.DrawFn) -> tuple[dict[int, int], dict[int, int], dict[int, int], dict[int, int]]:
    """What a member holds and drains, and what it is told: any combination."""
    held, owned = draw(partitions), draw(partitions)
    draining = {p: token for p, token in held.items() if draw(st.booleans())}
    revoked = {p: token for p, token in owned.items() if draw(st.booleans())}
    return held, draining, {p: token for p, token in owned.items() if p not in revoked}, revoked


@given(moments())
def test_after_the_plan_we_hold_what_we_own_under_its_tokens(
    moment: tuple[Mapping[int, int], Mapping[int, int], Mapping[int, int], Mapping[int, int]],
) -> None:
    held, draining, granted, revoked = moment
    plan = reconcile(held, draining, granted, revoked)

    after = {p: token for p, token in held.items() if p not in plan.lose} | dict(plan.acquire)
    being_drained = {p for p in draining if p not in plan.lose} | set(plan.drain)
    released = dict(plan.release)

    owned = {**granted, **revoked}
    assert {**after, **released} == owned  # nothing that is not ours, and everything that is ours in some hand
    assert released.keys().isdisjoint(after)
    assert granted.items() <= after.items()
    assert {p for p in revoked if p in after} <= being_drained
    # Each partition is begun, drained and lost for a reason, and once.
    assert all(granted[p] == token and held.get(p) != token for p, token in plan.acquire)
    assert all(held[p] == revoked[p] and p not in draining for p in plan.drain)
    assert all(owned.get(p) != held[p] for p in plan.lose)
    # Told the same again, there is nothing left to do.
    again = reconcile(after, {p: after[p] for p in being_drained}, granted, revoked)
    assert (again.lose, again.drain, again.acquire) == ((), (), ())


# Leases


def test_a_lease_counts_from_when_the_heartbeat_was_sent() -> None:
    lease = Lease(session=10.0)
    assert lease.deadline == 0.0
    lease.renew(sent=100.0)
    assert lease.deadline == 100.0 + DEADLINE_SHARE * 10.0 == 107.0


def test_a_late_answer_never_shortens_a_lease() -> None:
    lease = Lease(session=10.0)
    lease.renew(sent=100.0)
    lease.renew(sent=90.0)
    assert lease.deadline == 107.0


def test_a_lease_can_end_and_begin_again() -> None:
    lease = Lease(session=10.0)
    lease.renew(sent=100.0)
    lease.end()
    assert lease.deadline == 0.0
    lease.renew(sent=101.0)
    assert lease.deadline == 108.0


# Schedules


def at(zone: str, *when: int, fold: int = 0) -> float:
    return datetime(*when, tzinfo=ZoneInfo(zone), fold=fold).timestamp()  # type: ignore[arg-type, misc]


def next_local(spec: str, zone: str, now: float) -> datetime:
    return datetime.fromtimestamp(schedules.next_crontab(spec, ZoneInfo(zone), now), ZoneInfo(zone))


def test_a_timer_is_due_at_the_next_multiple_of_its_interval() -> None:
    assert schedules.next_timer(10, 100.0) == 110.0
    assert schedules.next_timer(10, 109.9) == 110.0
    assert schedules.next_timer(0.5, 100.2) == 100.5


@given(
    interval=st.one_of(st.floats(0.001, 100_000), st.integers(1, 1000).map(lambda n: n / 10)),
    multiple=st.integers(0, 10**9),
    jitter=st.floats(0, 1),
)
def test_a_timer_is_due_after_now(interval: float, multiple: int, jitter: float) -> None:
    # 1.0 // 0.1 is 9.0: a timer that is due "now" would be due again and again until the clock has moved on.
    now = interval * (multiple + (jitter if jitter > 0.5 else 0))
    due = schedules.next_timer(interval, now)
    assert now < due <= now + interval * 1.001 + 1e-6


@pytest.mark.parametrize("interval", [0.05, 0.1, 1 / 3])
def test_a_timer_that_is_due_now_is_due_next_at_the_following_multiple(interval: float) -> None:
    first = int(1_795_708_837 / interval)
    numbers = range(first, first + 1000)
    assert [schedules.next_timer(interval, n * interval) for n in numbers] == [(n + 1) * interval for n in numbers]


def test_a_crontab_is_due_at_its_time_in_its_zone() -> None:
    now = at("UTC", 2024, 1, 15, 12, 0)
    assert schedules.next_crontab("45 17 * * *", ZoneInfo("UTC"), now) == at("UTC", 2024, 1, 15, 17, 45)
    assert schedules.next_crontab("45 17 * * *", ZoneInfo("Asia/Tokyo"), now) == at("Asia/Tokyo", 2024, 1, 16, 17, 45)
    assert schedules.next_crontab("* * * * *", ZoneInfo("UTC"), now) == now + 60
    assert schedules.next_crontab("* * * * *", ZoneInfo("UTC"), now + 59.9) == now + 60
    assert next_local("0 9 * * MON", "UTC", now) == datetime(2024, 1, 22, 9, tzinfo=ZoneInfo("UTC"))


def test_a_crontab_in_the_hour_that_does_not_exist_is_due_right_after_it() -> None:
    # Berlin, 31 March 2024: 02:00 is followed by 03:00.
    due = next_local("30 2 * * *", "Europe/Berlin", at("Europe/Berlin", 2024, 3, 31, 1, 59))
    assert due == datetime(2024, 3, 31, 3, 0, tzinfo=ZoneInfo("Europe/Berlin"))
    following = next_local("30 2 * * *", "Europe/Berlin", due.timestamp())
    assert following == datetime(2024, 4, 1, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"))


def test_a_crontab_in_the_hour_that_comes_twice_is_due_once() -> None:
    # Berlin, 27 October 2024: 03:00 summer time is followed by 02:00 winter time.
    first = at("Europe/Berlin", 2024, 10, 27, 2, 30, fold=0)
    tomorrow = at("Europe/Berlin", 2024, 10, 28, 2, 30)
    zone = ZoneInfo("Europe/Berlin")
    assert schedules.next_crontab("30 2 * * *", zone, first - 1) == first
    assert schedules.next_crontab("30 2 * * *", zone, first) == tomorrow
    # Asked in the second of the two hours: 02:30 has been, 50 minutes ago.
    assert schedules.next_crontab("30 2 * * *", zone, at("Europe/Berlin", 2024, 10, 27, 2, 10, fold=1)) == tomorrow


def test_a_crontab_of_every_half_hour_keeps_its_pace_over_both_changes() -> None:
    zone = ZoneInfo("Europe/Berlin")
    for day in ((2024, 3, 31), (2024, 10, 27)):
        start = at("Europe/Berlin", *day, 0, 0)
        now, seen = start, []
        for _ in range(10):
            now = schedules.next_crontab("*/30 * * * *", zone, now)
            seen.append(now - start)
        assert seen == [1800.0 * n for n in range(1, 11)]


@given(
    spec=st.sampled_from(["30 2 * * *", "*/7 * * * *", "0 */5 * * *", "15 1-3 * * SUN", "0 0 1 * *", "59 23 29 2 *"]),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]),
    now=st.floats(1.70e9, 1.80e9),
)
def test_a_crontab_is_due_after_now(spec: str, zone: str, now: float) -> None:
    due = schedules.next_crontab(spec, ZoneInfo(zone), now)
    assert now < due <= now + timedelta(days=366 * 4 + 1).total_seconds()


@pytest.mark.parametrize("spec", ["", "* * * *", "61 * * * *", "a b c d e", "0 0 31 2 *", "0 0 30 2 *"])
def test_an_impossible_crontab_is_refused(spec: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a valid cron expression"):
        schedules.check_crontab(spec, "UTC")


@pytest.mark.parametrize("zone", ["Nowhere", "", "../etc/passwd", "/etc/passwd", "Europe", "Europe/Berlin\0"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(ConfigurationError, match="Unknown time zone"):
        schedules.check_crontab("* * * * *", zone)


def test_a_valid_crontab_gives_its_zone() -> None:
    assert schedules.check_crontab("0 0 29 2 *", "Europe/Berlin") == ZoneInfo("Europe/Berlin")


# Assignment


def test_nobody_is_assigned_anything_without_members() -> None:
    assert assign([], 4, {0: "gone"}) == {}


def test_members_that_were_there_first_keep_what_does_not_divide() -> None:
    assert sorted(assign(["a", "b", "c"], 5, {}).values()) == ["a", "a", "b", "b", "c"]


def test_a_member_more_than_partitions_stands_by() -> None:
    current = assign(["a", "b"], 2, {})
    assert assign(["a", "b", "c"], 2, current) == current


def test_a_member_that_leaves_64_moves_only_its_own() -> None:
    members = [f"m{n}" for n in range(64)]
    before = assign(members, 256, {})
    after = assign(members[1:], 256, before)
    assert sum(before[p] != after[p] for p in range(256)) == 4


def test_members_that_come_and_go_have_whole_slot_groups_where_they_divide() -> None:
    assigned: dict[int, str] = {}
    for members in (["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"], ["b", "c", "d"], ["d"]):
        assigned = assign(members, 48, assigned, slot_groups=12)
        for group in range(12):
            assert len({assigned[p] for p in range(group, 48, 12)}) == 1, f"{members} share the slot group {group}"


names = st.sampled_from("abcdefghij")


@given(
    members=st.lists(names, unique=True, min_size=1),
    partition_count=st.integers(1, 40),
    slot_groups=st.integers(1, 12),
    data=st.data(),
)
def test_an_assignment_is_balanced_complete_minimal_and_stable(
    members: list[str], partition_count: int, slot_groups: int, data: st.DataObject
) -> None:
    current = data.draw(st.dictionaries(st.integers(0, partition_count - 1), names))
    assigned = assign(members, partition_count, current, slot_groups)

    assert assigned.keys() == set(range(partition_count))
    sizes = {member: sum(owner == member for owner in assigned.values()) for member in members}
    assert sum(sizes.values()) == partition_count
    assert max(sizes.values()) - min(sizes.values()) <= 1

    # No balanced assignment can keep more than this: every member its quota, and as many of those that have more than
    # that as there are places for one more.
    quota, extra = divmod(partition_count, len(members))
    had = [sum(owner == member for owner in current.values()) for member in members]
    most_kept = sum(min(n, quota) for n in had) + min(extra, sum(n > quota for n in had))
    assert sum(current.get(p) == owner for p, owner in assigned.items()) == most_kept

    assert assign(members, partition_count, dict(reversed(current.items())), slot_groups) == assigned
    assert assign(members, partition_count, assigned, slot_groups) == assigned
