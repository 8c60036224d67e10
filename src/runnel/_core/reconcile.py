"""From the coordinator's answer to what a member must do."""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Plan", "reconcile"]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do so that the partitions we run are those that were granted.

    Attributes:
        lose: partitions that were taken from us. Stop at once, without a commit.
        drain: partitions to hand back in good order, once.
        acquire: partitions to begin, with the token of each.
        release: partitions to hand back at once, with the token of each. They were granted in an answer that never
            reached us, so there is nothing to drain; or our release never reached the coordinator.
    """

    lose: tuple[int, ...]
    drain: tuple[int, ...]
    acquire: tuple[tuple[int, int], ...]
    release: tuple[tuple[int, int], ...] = ()


def reconcile(
    held: Mapping[int, int],
    draining: Mapping[int, int],
    granted: Mapping[int, int],
    revoked: Mapping[int, int],
) -> Plan:
    """Compare what we hold with what the coordinator says we own.

    All arguments map a partition to its token.

    Arguments:
        held: the partitions that we run or drain.
        draining: those of them that are being handed back already.
        granted: the partitions that the coordinator counts as ours, and wants us to keep.
        revoked: the partitions that it counts as ours, and wants back.

    Returns:
        A plan. A partition granted under a new token was ours, was lost and is ours again: it is in ``lose`` and in
        ``acquire``. A revocation that was withdrawn (granted again under the token that is draining) changes nothing:
        the partition is handed back and then granted anew.
    """
    owned = {**granted, **revoked}
    lose = tuple(p for p, token in held.items() if owned.get(p) != token)
    drain = tuple(p for p, token in revoked.items() if held.get(p) == token and p not in draining)
    acquire = tuple((p, token) for p, token in granted.items() if held.get(p) != token)
    release = tuple((p, token) for p, token in revoked.items() if held.get(p) != token)
    return Plan(lose, drain, acquire, release)
