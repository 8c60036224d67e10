"""How long a member may act on what it was granted."""

__all__ = ["DEADLINE_SHARE", "Lease"]

DEADLINE_SHARE = 0.7
"""Share of the session after which an owner stops by itself.

The coordinator gives the partitions away after the whole session, so an owner that cannot renew stops before anybody
else starts, even when its clock runs 30 % slow.
"""


class Lease:
    """The deadline of one member, on the monotonic clock.

    Written by the heartbeat thread, read by the event loop before every hand-over of events to user code. Both are
    single attribute accesses, which the interpreter makes atomic.
    """

    __slots__ = ("_session", "deadline")

    def __init__(self, session: float) -> None:
        """Arguments:
        session: the session timeout in seconds.
        """
        self._session = session
        self.deadline = 0.0

    def renew(self, sent: float) -> None:
        """A heartbeat sent at ``sent`` (monotonic, seconds) was answered.

        Counted from when it was *sent*: the answer may have been held up on its way for any length of time.
        """
        self.deadline = max(self.deadline, sent + DEADLINE_SHARE * self._session)

    def end(self) -> None:
        """The coordinator does not know us any more."""
        self.deadline = 0.0
