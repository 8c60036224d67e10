"""What a worker's log says of what was announced."""

from structlog.testing import capture_logs

from runnel.errors import RedisUnavailable
from runnel.instruments import RedisGivenUp, RedisLost, RedisRecovered
from runnel.observability import LogSubscriber


def test_an_outage_is_two_lines_and_as_long_as_the_longest_wait() -> None:
    subscriber, error = LogSubscriber("console"), RedisUnavailable("gone")
    for role in ("read", "commit"):
        for announcement in (
            RedisLost(role, error),
            RedisLost("look", error),
            RedisRecovered(role, 7.7),
            RedisRecovered("look", 3.8),
        ):
            with capture_logs() as lines:
                subscriber(announcement)
            said = [(line["event"], line.get("seconds")) for line in lines if line["log_level"] != "debug"]
            match announcement:
                case RedisLost("look") | RedisRecovered("read" | "commit"):
                    assert said == []
                case RedisLost():
                    assert said == [("waiting for Redis", None)]
                case _:
                    assert said == [("Redis is back", 7.7)]


def test_a_wait_that_was_given_up_does_not_lengthen_the_next_outage() -> None:
    subscriber, error = LogSubscriber("console"), RedisUnavailable("gone")
    for announcement in (
        RedisLost("read", error),
        RedisLost("look", error),
        RedisRecovered("look", 9.9),
        RedisGivenUp("read"),
    ):
        subscriber(announcement)
    subscriber(RedisLost("read", error))
    with capture_logs() as lines:
        subscriber(RedisRecovered("read", 0.5))
    assert [(line["event"], line["seconds"]) for line in lines] == [("Redis is back", 0.5)]
