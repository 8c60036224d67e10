"""From a partition key to a partition.

The answer must never change: not with the Python version, not with what is installed, not with what was routed before.
The canonical bytes of a key are therefore spelled out here and pinned by a test.
"""

from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from operator import index
from typing import Any
from uuid import UUID

import xxhash

from runnel.errors import PartitionKeyError

_digest = xxhash.xxh64_intdigest

__all__ = ["DEFAULT_HASHER", "canonical_bytes", "hasher_name", "partition_of", "xxh64"]


def canonical_bytes(key: object) -> bytes:
    """The bytes that stand for a partition key.

    ``str`` is its UTF-8, ``int`` its decimal text, ``bytes`` are themselves; ``UUID``, ``datetime``, ``date``,
    ``time`` and ``Decimal`` are their standard text; an ``Enum`` is its value; ``bool`` is ``true`` or ``false``.

    Raises:
        PartitionKeyError: ``key`` is ``None`` or of another type (a ``float`` for instance: equal numbers may
            have different texts, so their events could part).
    """
    match key:
        case str() if not isinstance(key, Enum):
            return key.encode()
        case Enum():
            return canonical_bytes(key.value)
        case bool():
            return b"true" if key else b"false"
        case int():
            return b"%d" % key
        case bytes():
            return key
        case UUID() | Decimal():
            return str(key).encode()
        case datetime() | date() | time():
            return key.isoformat().encode()
        case None:
            raise PartitionKeyError(
                "The partition key is None, so the event has no place in the order. Give every record a key, "
                "or use a callable partition_by that does."
            )
        case _:
            raise PartitionKeyError(
                f"A partition key cannot be of type {type(key).__name__} ({key!r}). "
                "Use str, int, bytes, bool, UUID, Decimal, an Enum or a datetime, or a callable partition_by "
                "that returns one of them."
            )


def xxh64(key: object) -> int:
    """The default hasher: 64-bit xxHash, seed 0, over the canonical bytes of ``key``.

    Source: https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
    """
    # The two commonest types without the match statement: 0.11 instead of 0.35 µs. A subclass may be an Enum.
    if type(key) is str:
        return _digest(key.encode())
    if type(key) is int:
        return _digest(b"%d" % key)
    return _digest(canonical_bytes(key))


DEFAULT_HASHER: Callable[[Any], int] = xxh64


def hasher_name(hasher: Callable[[Any], int]) -> str:
    """The name under which a stream's metadata remembers its hasher."""
    if hasher is xxh64:
        return "xxh64"
    return (
        f"{hasher.__module__}.{hasher.__qualname__}" if hasattr(hasher, "__qualname__") else type(hasher).__qualname__
    )


def partition_of(key: object, partition_count: int, hasher: Callable[[Any], int] = DEFAULT_HASHER) -> int:
    """The partition of ``key``: 0 to ``partition_count - 1``.

    Raises:
        PartitionKeyError: the key has no canonical bytes, or the stream's own hasher cannot take it.
    """
    try:
        return index(hasher(key)) % partition_count  # a float would lead to a partition that nobody reads
    except PartitionKeyError:
        raise
    except Exception as error:
        raise PartitionKeyError(f"The hasher {hasher_name(hasher)} failed for the key {key!r}: {error!r}") from error
