"""When timers and crontabs are due.

A tick has a number that every worker computes alike from the clock, so that it can be claimed once for all of them.
"""

from datetime import datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from runnel.errors import ConfigurationError

__all__ = ["check_crontab", "next_crontab", "next_timer"]


def next_timer(interval: float, now: float) -> float:
    """The first multiple of ``interval`` after ``now``; all in seconds since the epoch."""
    number = now // interval + 1
    # 1.0 // 0.1 is 9.0, so rounding can bring back `now` itself: due again and again until the clock has moved on.
    # Not `due + interval`, which may be a bit below the multiple: another tick for who goes by that.
    return number * interval if number * interval > now else (number + 1) * interval


def check_crontab(spec: str, timezone: str) -> tzinfo:
    """The zone of a crontab, after making sure that expression and zone are valid and that it can be due at all.

    Raises:
        ConfigurationError: not a cron expression, or not a time zone.
    """
    try:
        next(CronSim(spec, datetime(2024, 1, 1)))
    except (CronSimError, StopIteration) as error:
        raise ConfigurationError(
            f'"{spec}" is not a valid cron expression ({error or "it never matches"}). It has five fields: minute, '
            'hour, day of month, month, day of week; for example "45 17 * * *" for 17:45 every day. A sixth one in '
            "front of them is the second."
        ) from error
    try:
        return ZoneInfo(timezone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigurationError(
            f'Unknown time zone "{timezone}". Use a name of the IANA database, such as "Europe/Berlin".'
        ) from error


def next_crontab(spec: str, zone: tzinfo, now: float) -> float:
    """The first time after ``now`` at which ``spec`` matches in ``zone``; in seconds since the epoch."""
    # In the second of the two hours at the end of summer time, CronSim still offers what was due in the first one.
    matches = (match.timestamp() for match in CronSim(spec, datetime.fromtimestamp(now, zone)))
    return next(due for due in matches if due > now)
