"""Points in a stream, as people name them."""

import re
from datetime import UTC, datetime

from runnel._core.entry_ids import BEGINNING
from runnel.errors import NoSuchPlace

__all__ = ["duration", "moment", "point"]

_ID = re.compile(r"(\d+)(?:-(\d+))?")
_LARGEST = 2**64 - 1
"""Of either number of an id: Redis refuses more."""

_DURATION = re.compile(r"-?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def point(words: str, now: float) -> bytes | None:
    """The id of the first entry that may lie there.

    Arguments:
        words: ``earliest`` (or ``0``), ``latest`` (or ``$``), an entry id, a time in ISO 8601 (UTC unless it names a
            zone), or a duration before ``now``, such as ``-5m`` or ``-1h30m``.
        now: seconds since 1970.

    Returns:
        The id; ``None`` for what is yet to come.

    Raises:
        NoSuchPlace: it is none of these, or an id that Redis cannot have.
    """
    if words in ("latest", "$"):
        return None
    if words == "earliest":
        return BEGINNING
    if matched := _ID.fullmatch(words):
        milliseconds, sequence = int(matched[1]), int(matched[2] or 0)
        if max(milliseconds, sequence) > _LARGEST:
            raise NoSuchPlace(f'"{words}" is larger than any entry id. Ids look like 1700000000000-0.')
        return b"%d-%d" % (milliseconds, sequence)
    if words.startswith("-") and (seconds := _seconds(words)) is not None:
        return _id_at(now - seconds)
    if (seconds := _timestamp(words)) is not None:
        return _id_at(seconds)
    raise NoSuchPlace(
        f'"{words}" is neither an entry id nor a time. A place in a stream is named by an id such as 1700000000000-0, '
        "earliest, latest, a time such as 2026-01-31T12:00:00Z, or how long ago it was, such as -5m."
    )


def moment(words: str) -> bytes:
    """The id of the first entry that may have been sent at a time, in ISO 8601 (UTC unless it names a zone).

    Unlike :func:`point` it does not take ``20260131`` for an id.

    Raises:
        NoSuchPlace: it is no time.
    """
    seconds = _timestamp(words)
    if seconds is None:
        raise NoSuchPlace(f'"{words}" is not a time. Times look like 2026-01-31T12:00; UTC unless they have a zone.')
    return _id_at(seconds)


def duration(words: str) -> float:
    """Seconds of a duration such as ``90s``, ``5m``, ``1h30m`` or ``2d``.

    Raises:
        NoSuchPlace: it is none.
    """
    seconds = _seconds(words)
    if seconds is None:
        raise NoSuchPlace(f'"{words}" is not a duration. Durations look like 90s, 5m, 1h30m or 2d.')
    return seconds


def _seconds(words: str) -> float | None:
    matched = _DURATION.fullmatch(words)
    if matched is None or not any(matched.groups()):
        return None
    return float(sum(int(n or 0) * unit for n, unit in zip(matched.groups(), (86400, 3600, 60, 1), strict=True)))


def _timestamp(words: str) -> float | None:
    """Seconds since 1970 of a time in ISO 8601."""
    try:
        read = datetime.fromisoformat(words)
    except ValueError:
        return None
    return (read if read.tzinfo else read.replace(tzinfo=UTC)).timestamp()


def _id_at(seconds: float) -> bytes:
    return b"%d-0" % max(0, round(seconds * 1000))
