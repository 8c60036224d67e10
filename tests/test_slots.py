"""Where keys are on a cluster, and how URLs of several servers are read: plain decisions, without a server."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.crc import key_slot

from runnel import App
from runnel._core.slots import SLOTS, slot_groups_for, slot_of, tag_numbers
from runnel._redis.cluster import ClusterEndpoint
from runnel._redis.keys import ControlKeys, StreamKeys, task_ticks
from runnel._redis.sentinel import SentinelEndpoint
from runnel._redis.topology import endpoint_for
from runnel.errors import ConfigurationError


@settings(deadline=None)
@given(st.text(alphabet="ab{}é", max_size=12))
def test_a_key_has_the_slot_that_the_cluster_gives_it(key: str) -> None:
    assert slot_of(key) == key_slot(key.encode())


def test_a_stream_on_one_primary_is_one_slot_group_whose_keys_are_named_as_ever() -> None:
    assert slot_groups_for(1, 4096) == 1
    assert StreamKeys("a", "s").log(5) == "runnel:{a/s#0}:log:5"


@pytest.mark.parametrize(("primaries", "partitions", "groups"), [(3, 16, 12), (3, 8, 6), (6, 64, 24), (5, 3, 3)])
def test_a_stream_has_four_slot_groups_per_primary_or_as_many_as_its_partitions_allow(
    primaries: int, partitions: int, groups: int
) -> None:
    assert slot_groups_for(primaries, partitions) == groups


@settings(deadline=None)
@given(name=st.text(min_size=1, max_size=8), primaries=st.integers(2, 9), partitions=st.integers(2, 64))
def test_partitions_are_spread_evenly_over_equal_ranges_of_slots(name: str, primaries: int, partitions: int) -> None:
    keys = StreamKeys("app", name, slot_groups_for(primaries, partitions))
    on = [slot_of(keys.log(partition)) * primaries // SLOTS for partition in range(partitions)]
    counts = [on.count(primary) for primary in range(primaries)]
    assert max(counts) - min(counts) <= 2
    if partitions >= primaries and partitions % keys.slot_groups == 0:
        assert max(counts) == min(counts)


@settings(deadline=None)
@given(name=st.text(min_size=1, max_size=8), groups=st.integers(1, 30))
def test_each_slot_group_has_a_slot_of_its_own(name: str, groups: int) -> None:
    keys = StreamKeys("app", name, groups)
    assert len({slot_of(keys.registered(group)) for group in range(groups)}) == groups


def test_where_the_data_is_never_changes() -> None:
    assert tag_numbers("shop/orders", 12) == PINNED


PINNED = (42, 3, 8, 1, 49, 40, 9, 41, 0, 43, 2, 48)


def test_the_keys_of_a_script_are_in_one_slot() -> None:
    keys, control, leader = StreamKeys("a", "s", 12), ControlKeys.of("a", "s", "p"), ControlKeys.of_leader("a")
    for partition in range(24):
        group = keys.slot_group(partition)
        names = [keys.log(partition), keys.sequence(partition, "producer"), keys.registered(group)]
        names += [keys.positions(group, "p"), keys.positions(group, "another")]
        assert len({slot_of(name) for name in names}) == 1
    for one in (control, leader):
        names = [one.group, one.members, one.targets, one.owners, one.parked, one.slow, one.wake("m")]
        assert len({slot_of(name) for name in names}) == 1
    assert slot_of(task_ticks("a")) == slot_of(leader.group)


# URLs


def test_the_scheme_says_what_the_servers_are() -> None:
    assert isinstance(endpoint_for("redis+cluster://a,b:7000"), ClusterEndpoint)
    assert isinstance(endpoint_for("rediss+sentinel://u:p@a,b:7000/shop/3"), SentinelEndpoint)
    assert type(endpoint_for("rediss://a")) is type(endpoint_for("unix:///tmp/s"))


def test_user_password_database_and_certificates_are_those_of_the_servers() -> None:
    endpoint = endpoint_for(
        "rediss+sentinel://u:p%40ss@a,[::1]:7000/shop/3?ssl_certfile=mine.pem&sentinel_password=x%2Fy"
    )
    assert isinstance(endpoint, SentinelEndpoint)
    server = endpoint.toward("h", 1)._options
    assert {name: server[name] for name in ("username", "password", "db", "ssl_certfile", "host", "port")} == {
        "username": "u",
        "password": "p@ss",
        "db": 3,
        "ssl_certfile": "mine.pem",
        "host": "h",
        "port": 1,
    }
    sentinels = sorted(
        [sentinel._options for sentinel in endpoint._sentinels], key=lambda one: one["port"], reverse=True
    )
    assert [(one["host"], one["port"], one.get("username"), one["password"], one.get("db")) for one in sentinels] == [
        ("a", 26379, None, "x/y", None),
        ("::1", 7000, None, "x/y", None),
    ]
    assert all(one["ssl_certfile"] == "mine.pem" for one in sentinels)
    assert (
        endpoint.safe_url == "rediss+sentinel://u:***@a,[::1]:7000/shop/3?ssl_certfile=mine.pem&sentinel_password=***"
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://a:1,b:2", "does not name the service"),
        ("redis+sentinel://a/shop/x", "does not name the service"),
        ("redis+cluster://a/2", "has only one"),
        ("redis+cluster://a,,b", "a host is missing"),
        ("redis+cluster://a:x", "is not a Redis URL"),
        ("redis+cluster://", "a host is missing"),
        ("http+cluster://a", "is not a Redis URL"),
        ("unix+cluster:///tmp/s", "a host is missing"),
        ("redis+cluter://a", "is not a Redis URL"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused_with_one_that_can(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why) as raised:
        _ = App(name="a", redis_url=url).endpoint
    assert "redis+cluster://HOST:6379,HOST:6379" in str(raised.value)
