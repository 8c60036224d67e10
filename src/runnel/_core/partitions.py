"""The life of a partition in the hands of one member, as a table."""

from enum import Enum

__all__ = ["PartitionState", "Step", "advance"]


class PartitionState(Enum):
    """Where a partition stands, seen from the member that it was granted to."""

    GRANTED = "granted"
    RUNNING = "running"
    PARKED = "parked"
    DRAINING = "draining"
    RELEASED = "released"
    LOST = "lost"


class Step(Enum):
    """What can happen to it."""

    ACQUIRE = "acquire"
    PARK = "park"
    RESUME = "resume"
    DRAIN = "drain"
    RELEASE = "release"
    LOSE = "lose"


_S, _T = PartitionState, Step
_TABLE: dict[tuple[PartitionState, Step], PartitionState] = {
    (_S.GRANTED, _T.ACQUIRE): _S.RUNNING,
    (_S.GRANTED, _T.DRAIN): _S.DRAINING,
    (_S.GRANTED, _T.PARK): _S.PARKED,
    (_S.RUNNING, _T.PARK): _S.PARKED,
    (_S.PARKED, _T.RESUME): _S.RUNNING,
    (_S.RUNNING, _T.DRAIN): _S.DRAINING,
    (_S.PARKED, _T.DRAIN): _S.DRAINING,
    (_S.DRAINING, _T.RELEASE): _S.RELEASED,
    **{(state, _T.LOSE): _S.LOST for state in (_S.GRANTED, _S.RUNNING, _S.PARKED, _S.DRAINING)},
}


def advance(state: PartitionState, step: Step) -> PartitionState:
    """The state after ``step``. A step that the table does not have is a bug, and fails as one."""
    following = _TABLE.get((state, step))
    assert following is not None, f"a partition that is {state.value} cannot {step.value}"
    return following
